# bash completion for vma, made by: vzkeep completion vma --shell bash

_vzkeep_vma() {
    local word=${COMP_WORDS[COMP_CWORD]} options=
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W 'list config create extract verify' -- "$word"))
        return 0
    fi
    case ${COMP_WORDS[1]} in
        config) options='-c' ;;
        create) options='-v -c -d' ;;
        extract) options='-v -d -r' ;;
        verify) options='-v' ;;
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    else
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$word"))
    fi
    return 0
}
complete -F _vzkeep_vma vma
