#!/bin/sh
# One night: a round of training, the published model as a file, and a mail when the round failed.
#
#   nightly.sh MODEL DIRECTORY [OPTIONS of "fedctl round start"]
#
# Nothing is printed and nothing is mailed when all is well. A run that finds another one at work leaves it
# alone. The exit code is fedctl's. $MAIL_TO is who gets the mail, by default root of this machine; it needs
# the command "mail" (Debian: bsd-mailx), and without it says on stderr what went wrong.
set -u

if [ $# -lt 2 ]; then
    echo "usage: $0 MODEL DIRECTORY [OPTIONS]" >&2
    exit 2
fi
model=$1
directory=$2
shift 2

said=$(mktemp) || exit
trap 'rm -f "$said"' EXIT

failed() { # CODE WHAT
    mail -s "fedctl: $2 of $model failed" "${MAIL_TO:-root}" <"$said" || cat "$said" >&2 # nobody was told yet
    exit "$1"
}

# A round that a reboot or a power cut ended is finished first: the same command does that.
fedctl round start "$model" --skip-if-running -q "$@" >/dev/null 2>"$said" || failed $? "the round"

version=$(fedctl model show "$model@published" -o name 2>"$said") || failed $? "the export"
file=$directory/$(echo "$version" | tr @ -).safetensors
if [ ! -e "$file" ]; then # no new version when another run was at work
    fedctl model export "$version" "$file" -q 2>"$said" || failed $? "the export"
fi
