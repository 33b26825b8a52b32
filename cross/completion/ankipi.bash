# Completion of ankipi for bash: /usr/share/bash-completion/completions/ankipi
# Commands and options come from the help of the program itself, and so are those of the version that is installed.

_ankipi() {
	local cur prev before commands
	cur=${COMP_WORDS[COMP_CWORD]}
	prev=${COMP_WORDS[COMP_CWORD - 1]}
	case $prev in
	--base) mapfile -t COMPREPLY < <(compgen -d -- "$cur") && return ;;
	--config | --password-file | import) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && return ;;
	esac
	commands=$("${COMP_WORDS[0]}" --help 2>/dev/null | sed -n '/^Commands:/,/^$/s/^  \([a-z -]*[a-z]\)  .*/\1/p')
	before="${COMP_WORDS[*]:1:COMP_CWORD-1}"
	before=${before:+$before }
	if [[ $cur == -* ]]; then
		local name="" word
		for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
			[[ $word == -* ]] && break
			grep -q "^${name:+$name }$word\( \|$\)" <<<"$commands" || break
			name="${name:+$name }$word"
		done
		# shellcheck disable=SC2086 # a name may be two words
		mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" $name --help 2>/dev/null | grep -o -- '  --[a-z-]*')" -- "$cur")
		return
	fi
	# The words of all commands that begin with what is typed already.
	mapfile -t COMPREPLY < <(compgen -W "$(sed -n "s/^${before}\([^ ]*\).*/\1/p" <<<"$commands")" -- "$cur")
	((${#COMPREPLY[@]})) || mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}
complete -F _ankipi ankipi
