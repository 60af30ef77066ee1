# fish completion for vma, made by: vzkeep completion vma --shell fish
set -l commands list config create extract verify
complete -c vma -n "not __fish_seen_subcommand_from $commands" -f -a "$commands"
complete -c vma -n '__fish_seen_subcommand_from config' -s c -x -d 'Configuration file in the archive'
complete -c vma -n '__fish_seen_subcommand_from create' -s c -r -F -d 'Configuration file'
complete -c vma -n '__fish_seen_subcommand_from create' -s d -r -F -d 'Disk: format=raw:name=path'
complete -c vma -n '__fish_seen_subcommand_from extract' -s d -x -d 'Only these disks'
complete -c vma -n '__fish_seen_subcommand_from extract' -s r -r -F -d 'Where the disks go is read from this fifo'
complete -c vma -n '__fish_seen_subcommand_from create extract verify' -s v -d 'Tell how far it is'
