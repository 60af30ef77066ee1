#!/bin/sh
# Copies every complete archive to a second directory and verifies the copy: by checksum, and by the decompressor's own
# test. The copy gets its name only when it is verified; until then it is called <archive>.partial.
#
# Works as a vzdump hook script and in hooks.d. Standard input is not read.

# Where the copies go: a directory that exists, best on another machine. One that is missing is an error; nothing is
# created, because a missing directory is most often one that is not mounted.
COPY_TO=/mnt/second/dump
# What a failed copy means: "fail" fails the backup of that guest (its archive is there all the same), "warn" says so in the
# log and goes on.
ON_FAILURE=fail

# These settings may also stand in a file beside this script.
[ -r "$0.conf" ] && . "$0.conf"

# The environment of a hook is empty.
PATH=/usr/local/bin:/usr/bin:/bin
export PATH
umask 077

say() { echo "copy-and-verify: $*"; }

give_up() {
    [ -z "$partial" ] || rm -f "$partial"
    if [ "$ON_FAILURE" = warn ]; then
        say "WARNING: $*"
        exit 0
    fi
    say "ERROR: $*" >&2
    exit 1
}

checksum() { sha256sum <"$1" | cut -d ' ' -f 1; }

# The decompressor's own test; an archive that is not compressed has none.
test_archive() {
    case $1 in
        *.zst) zstd -q -t - <"$2" ;;
        *.gz | *.tgz) gzip -t <"$2" ;;
        *.lzo) lzop -q -t <"$2" ;;
    esac
}

copy() {
    # With --stdout ("-") and on a backup server ("vm/100/<time>") there is no file to copy.
    case $TARGET in
        /*) ;;
        *) exit 0 ;;
    esac
    name=${TARGET##*/}
    [ -d "$COPY_TO" ] || give_up "'$COPY_TO' is no directory: is it mounted?"
    partial=$COPY_TO/$name.partial
    # Also when we are ended because we take too long.
    trap 'rm -f "$partial"; exit 1' HUP INT TERM

    cp -- "$TARGET" "$partial" || give_up "'$TARGET' cannot be copied to '$COPY_TO'"
    sync "$partial" || give_up "'$partial' cannot be written to its disk"
    wanted=$(checksum "$TARGET") && [ -n "$wanted" ] || give_up "'$TARGET' cannot be read again"
    found=$(checksum "$partial")
    [ "$found" = "$wanted" ] || give_up "'$partial' differs from the archive: checksum '$found', not '$wanted'"
    test_archive "$name" "$partial" || give_up "'$partial' is damaged, and so is '$TARGET'"
    mv -- "$partial" "$COPY_TO/$name" || give_up "'$partial' cannot be renamed"
    sync "$COPY_TO" || give_up "'$COPY_TO' cannot be written to its disk"
    say "'$COPY_TO/$name' is verified, sha256 $wanted"
}

# One process, one phase. Others are let pass, also those that a newer version may have.
case $1 in
    backup-end) copy ;;
esac
exit 0
