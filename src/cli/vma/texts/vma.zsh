#compdef vma
# zsh completion for vma, made by: vzkeep completion vma --shell zsh

_vzkeep_vma() {
    if (( CURRENT == 2 )); then
        compadd -- list config create extract verify
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
        config) _arguments '-c[configuration file in the archive]:name:' ':archive:_files' ;;
        create) _arguments '-v[tell how far it is]' '*-c[configuration file]:file:_files' '*-d[disk]:format=raw\:name=path:_files' '*:file:_files' ;;
        extract) _arguments '-v[tell how far it is]' '-d[disks]:names:' '-r[fifo]:fifo:_files' ':archive:_files' ':directory:_files -/' ;;
        verify) _arguments '-v[tell how far it is]' ':archive:_files' ;;
        *) _files ;;
    esac
}

_vzkeep_vma "$@"
