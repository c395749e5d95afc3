# fish completion of fedctl. Written by completions/generate.py; change its template, not this file.
#
# For one user:  fedctl completion fish > ~/.config/fish/completions/fedctl.fish

# What may follow `fedctl $argv`: words, flags, flags with a value (-l=labels), places of arguments.
function __fedctl_level
    set -g __fedctl_words
    set -g __fedctl_flags
    set -g __fedctl_valued
    set -g __fedctl_places
    switch "$argv"
@@COMMANDS@@
        case '*'
            return 1
    end
end

# What the value of an option is, such as "labels"; nothing for a flag.
function __fedctl_value
    set -l option $argv[1]
    if not string match -q -- '--*' $option # -q, -ql: the first letter with a value ends the word
        for letter in (string split '' -- (string sub -s 2 -- $option))
            set -l found (string match -- "-$letter=*" $__fedctl_valued)
            or continue
            string match -q -- "*$letter" $option
            and string replace -- "-$letter=" '' $found[1]
            return
        end
        return
    end
    string replace -f -- "$option=" '' (string match -- "$option=*" $__fedctl_valued)[1]
end

# Offer what the kinds $argv[1] mean for the word $argv[2], each with $argv[3] in front.
function __fedctl_offer
    for kind in (string split + -- $argv[1])
        switch $kind
            case none
            case files
                __fish_complete_path $argv[2]
            case directories
                __fish_complete_directories $argv[2] ''
            case 'words:*'
                string split , -- (string replace words: '' -- $kind)
            case '*'
                $__fedctl_program __complete $kind $argv[2] 2>/dev/null
        end
    end | string replace -r '^' -- $argv[3]
end

function __fedctl_complete
    set -l typed (commandline -opc)
    set -l current (commandline -ct | string trim -l -c '\'"')
    set -g __fedctl_program $typed[1]
    set -l path
    set -l at 1
    set -l pending
    set -l bare
    __fedctl_level
    for word in $typed[2..]
        if test -n "$pending"
            set pending
        else if test "$word" = --
            set bare 1
        else if test -z "$bare"; and string match -q -- '-?*' $word
            string match -q -- '*=*' $word
            and continue
            set pending (__fedctl_value $word)
        else if test -n "$__fedctl_words"
            set -a path $word
            __fedctl_level $path
            or return
        else
            set at (math $at + 1)
        end
    end
    if test -n "$pending"
        __fedctl_offer $pending "$current" ''
    else if test -z "$bare"; and string match -q -- '--*=*' $current
        set -l parts (string split -m 1 = -- $current)
        set -l kind (__fedctl_value $parts[1])
        test -n "$kind"
        and __fedctl_offer $kind "$parts[2]" "$parts[1]="
    else if test -z "$bare"; and string match -q -- '-*' $current
        printf '%s\n' $__fedctl_flags
    else if test -n "$__fedctl_words"
        printf '%s\n' $__fedctl_words
    else if set -q __fedctl_places[$at]
        __fedctl_offer (string replace ... '' -- $__fedctl_places[$at]) "$current" ''
    else if string match -q -- '*...' "$__fedctl_places[-1]"
        __fedctl_offer (string replace ... '' -- $__fedctl_places[-1]) "$current" ''
    end
end

complete -c fedctl -f -a '(__fedctl_complete)'
