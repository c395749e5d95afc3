# bash completion of fedctl. Written by completions/generate.py; change its template, not this file.
#
# For one user:  fedctl completion bash > ~/.local/share/bash-completion/completions/fedctl
# Without the bash-completion package:  source it in ~/.bashrc

# What may follow `fedctl $1`: words, flags, flags with a value (-l=labels), places of arguments.
_fedctl_level() {
    words="" flags="" valued="" places=""
    case $1 in
@@COMMANDS@@
        *) return 1 ;;
    esac
}

# Fill `typed` with the words up to the cursor, as the shell splits them: bash cuts at = : @ as well.
_fedctl_typed() {
    local before=${COMP_LINE:0:COMP_POINT} part i last=-1
    typed=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        part=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $before == [[:space:]]* ]]; then
            before=${before#"${before%%[![:space:]]*}"}
            last=$((last + 1))
            typed[last]=""
        fi
        ((i == COMP_CWORD)) && part=$before
        typed[last]+=$part
        before=${before#"$part"}
    done
}

# What the value of option $1 is, such as "labels"; empty for a flag.
_fedctl_value() {
    local option=$1 i letter
    kind=""
    if [[ $option != --* ]]; then # -q, -ql: the first letter with a value ends the word
        for ((i = 1; i < ${#option}; i++)); do
            letter=-${option:i:1}
            if [[ " $valued" == *" $letter="* ]]; then
                ((i == ${#option} - 1)) && break
                return
            fi
        done
        option=$letter
    fi
    if [[ " $valued" == *" $option="* ]]; then
        kind=" $valued"
        kind=${kind#*" $option="}
        kind=${kind%% *}
    fi
}

# Offer what a kind means for `current`, each with $2 in front.
_fedctl_offer() {
    local kind=$1 front=$2 name
    case $kind in
        none) ;;
        files)
            compopt -o filenames 2>/dev/null
            while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen -f -- "$current")
            ;;
        directories)
            compopt -o filenames 2>/dev/null
            while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen -d -- "$current")
            ;;
        words:*)
            [[ $kind == *://* ]] && compopt -o nospace 2>/dev/null
            _fedctl_words "${kind#words:}" "$front"
            ;;
        *)
            while IFS=$'\t' read -r name _; do
                [[ $name == "$current"* ]] && COMPREPLY+=("$front$name")
            done < <("$program" __complete "$kind" "$current" 2>/dev/null)
            ;;
    esac
}

# Offer the words of $1, split at spaces and commas, each with $2 in front.
_fedctl_words() {
    local word
    for word in ${1//,/ }; do
        [[ $word == "$current"* ]] && COMPREPLY+=("$2$word")
    done
}

# bash replaces only what stands behind the last = or : of the word, or what begins at its last @.
_fedctl_cut() {
    local whole=$1 sign front i
    for sign in = : @; do
        [[ $COMP_WORDBREAKS == *"$sign"* && $whole == *"$sign"* ]] || continue
        front=${whole%"${whole##*"$sign"}"}
        [[ $sign == @ ]] && front=${front%@}
        for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#"$front"}; done
        whole=${whole#"$front"}
    done
}

_fedctl() {
    local program=$1 path="" at=0 pending="" bare="" kind="" word i
    local words flags valued places current
    local -a typed
    COMPREPLY=()
    _fedctl_typed
    _fedctl_level ""
    for ((i = 1; i < ${#typed[@]} - 1; i++)); do
        word=${typed[i]}
        if [[ $pending ]]; then
            pending=""
        elif [[ $word == -- ]]; then
            bare=1
        elif [[ $word == -?* && ! $bare ]]; then
            [[ $word == *=* ]] && continue
            _fedctl_value "$word"
            pending=$kind
        elif [[ $words ]]; then
            path="$path${path:+ }$word"
            _fedctl_level "$path" || return
        else
            at=$((at + 1))
        fi
    done
    current=${typed[${#typed[@]} - 1]}
    word=$current
    if [[ $pending ]]; then
        _fedctl_offer "$pending" ""
    elif [[ $current == --*=* && ! $bare ]]; then
        _fedctl_value "${current%%=*}"
        current=${current#*=}
        [[ $kind ]] && _fedctl_offer "$kind" "${word%%=*}="
    elif [[ $current == -* && ! $bare ]]; then
        _fedctl_words "$flags" ""
    elif [[ $words ]]; then
        _fedctl_words "$words" ""
    else
        _fedctl_place
    fi
    _fedctl_cut "$word"
}

# Offer what the argument at place `at` may be; the last place may stand for any number of them.
_fedctl_place() {
    local -a kinds
    read -ra kinds <<<"$places"
    ((${#kinds[@]})) || return
    if ((at >= ${#kinds[@]})); then
        at=$((${#kinds[@]} - 1))
        [[ ${kinds[at]} == *... ]] || return
    fi
    kind=${kinds[at]%...}
    while [[ $kind == *+* ]]; do
        _fedctl_offer "${kind%%+*}" ""
        kind=${kind#*+}
    done
    _fedctl_offer "$kind" ""
}

complete -F _fedctl fedctl
