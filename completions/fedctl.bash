# bash completion of fedctl. Written by completions/generate.py; change its template, not this file.
#
# For one user:  fedctl completion bash > ~/.local/share/bash-completion/completions/fedctl
# Without the bash-completion package:  source it in ~/.bashrc

# What may follow `fedctl $1`: words, flags, flags with a value (-l=labels), places of arguments.
_fedctl_level() {
    words="" flags="" valued="" places=""
    case $1 in
        "")
            words="init devices model round data demo completion"
            flags="--version -o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "init")
            flags="--root-key -o --output -q --quiet -v --verbose --help"
            valued="--root-key=files -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "devices")
            words="add upgrade rekey list show label note maintenance ping check remove"
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "devices add")
            flags="-f --file -l --label --note --source --token-file --accept-host-key --via --system --user --wheels -F --ssh-config --root-key --dry-run --parallel -o --output -q --quiet -v --verbose --help"
            valued="-f=files --file=files -l=labels --label=labels --note=none --source=files --token-file=files --accept-host-key=none --via=words:ssh:// --wheels=directories -F=files --ssh-config=files --root-key=files --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="none words:ssh://,https://,unix://"
            ;;
        "devices upgrade")
            flags="-l --label --limit --wheels --reinstall --via -F --ssh-config --timeout --parallel -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --wheels=directories --via=words:ssh:// -F=files --ssh-config=files --timeout=none --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "devices rekey")
            flags="-l --label --limit --via --new-key --accept-host-key -F --ssh-config --parallel --dry-run -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --via=words:ssh:// --accept-host-key=none -F=files --ssh-config=files --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "devices list")
            flags="-l --label --limit -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "devices show")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices"
            ;;
        "devices label")
            flags="-l --label --limit -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices+labels..."
            ;;
        "devices note")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices none"
            ;;
        "devices maintenance")
            flags="-l --label --limit -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices+words:on,off..."
            ;;
        "devices ping")
            flags="-l --label --limit --timeout --parallel -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --timeout=none --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "devices check")
            flags="-l --label --limit --timeout --parallel -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --timeout=none --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "devices remove")
            flags="-l --label --limit --accept-host-key -F --ssh-config --root-key --purge --forget -y --yes -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --accept-host-key=none -F=files --ssh-config=files --root-key=files -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "model")
            words="create list show inspect push export"
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "model create")
            flags="--builder --input --columns --classes --hidden --channels --kernel --pool --scale --seed --local-epochs --batch-size --lr --optimizer --momentum --weight-decay --proximal-mu --max-gradient-norm --class-weights --max-examples -o --output -q --quiet -v --verbose --help"
            valued="--builder=words:logreg,mlp,cnn --input=none --columns=none --classes=none --hidden=none --channels=none --kernel=none --pool=none --scale=words:standard,none --seed=none --local-epochs=none --batch-size=none --lr=none --optimizer=words:sgd,adam --momentum=none --weight-decay=none --proximal-mu=none --max-gradient-norm=none --class-weights=words:none,balanced --max-examples=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="none"
            ;;
        "model list")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "model show")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="models"
            ;;
        "model inspect")
            flags="--batch-size -o --output -q --quiet -v --verbose --help"
            valued="--batch-size=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="models"
            ;;
        "model push")
            flags="-l --label --limit --parallel -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="models devices..."
            ;;
        "model export")
            flags="--force -o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="models files"
            ;;
        "round")
            words="start list show watch resume cancel"
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "round start")
            flags="-l --label --limit --rounds --skip-if-running --strict --until --quorum --deadline --tolerance --seed --max-update-norm --local-epochs --batch-size --lr --optimizer --momentum --weight-decay --proximal-mu --max-gradient-norm --class-weights --max-examples -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --rounds=none --until=none --quorum=none --deadline=none --tolerance=none --seed=none --max-update-norm=none --local-epochs=none --batch-size=none --lr=none --optimizer=words:sgd,adam --momentum=none --weight-decay=none --proximal-mu=none --max-gradient-norm=none --class-weights=words:none,balanced --max-examples=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="model-names devices..."
            ;;
        "round list")
            flags="--limit -o --output -q --quiet -v --verbose --help"
            valued="--limit=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="model-names"
            ;;
        "round show")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="rounds"
            ;;
        "round watch")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="rounds"
            ;;
        "round resume")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="rounds"
            ;;
        "round cancel")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="rounds"
            ;;
        "data")
            words="check"
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "data check")
            flags="-l --label --limit --model --source --timeout --parallel -o --output -q --quiet -v --verbose --help"
            valued="-l=labels --label=labels --limit=none --model=models --source=files --timeout=none --parallel=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="devices..."
            ;;
        "demo")
            flags="--devices --rounds --seed --stop -o --output -q --quiet -v --verbose --help"
            valued="--devices=none --rounds=none --seed=none -o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            ;;
        "completion")
            flags="-o --output -q --quiet -v --verbose --help"
            valued="-o=words:table,json,jsonl,name --output=words:table,json,jsonl,name"
            places="words:bash,zsh,fish"
            ;;
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
