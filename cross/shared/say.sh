# shellcheck shell=bash
# How these scripts talk; sourced.

say() { echo "${0##*/}: $*" >&2; }

# Ends the script.
die() { say "$@"; exit 1; }
