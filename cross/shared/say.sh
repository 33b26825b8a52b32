# shellcheck shell=bash
# Output and error functions of these scripts; sourced.

say() { echo "${0##*/}: $*" >&2; }

# Ends the script.
die() { say "$@"; exit 1; }
