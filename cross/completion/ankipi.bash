# Completion of ankipi for bash: /usr/share/bash-completion/completions/ankipi
# Commands and options come from the help of the program itself, and so are those of the version that is installed.

_ankipi() {
	local cur prev before commands line i
	cur=${COMP_WORDS[COMP_CWORD]}
	prev=${COMP_WORDS[COMP_CWORD - 1]}
	case $prev in
	--base) mapfile -t COMPREPLY < <(compgen -d -- "$cur") && return ;;
	--config | --password-file | import) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && return ;;
	esac
	commands=$("${COMP_WORDS[0]}" --help 2>/dev/null | sed -n '/^Commands:/,/^$/s/^  \([a-z -]*[a-z]\)  .*/\1/p')
	# The words of the command, without the options that may stand in front of it.
	before=
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--base | --config) ((i += 1)) ;;
		*) before+="${COMP_WORDS[i]} " ;;
		esac
	done
	if [[ $cur == -* ]]; then
		local name="" word
		for word in $before; do
			[[ $word == -* || $'\n'$commands != *$'\n'"${name:+$name }$word"* ]] && break
			name="${name:+$name }$word"
		done
		# shellcheck disable=SC2086 # a name may be two words
		mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" $name --help 2>/dev/null | grep -o -- '  --[a-z-]*')" -- "$cur")
		return
	fi
	# The words of all commands that begin with what is typed already.
	mapfile -t COMPREPLY < <(compgen -W "$(while read -r line; do
		[[ $line == "$before"* ]] && line=${line#"$before"} && echo "${line%% *}"
	done <<<"$commands")" -- "$cur")
	((${#COMPREPLY[@]})) || mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}
complete -F _ankipi ankipi
