//! "Did you mean": the known word that is nearest to a mistyped one.

/// The candidate with the smallest edit distance to `typed`; `None` if all differ too much. Ignores case.
pub fn nearest<'c>(typed: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let typed = typed.to_ascii_lowercase();
    let (distance, best) = candidates
        .map(|word| (distance(&typed, &word.to_ascii_lowercase()), word))
        .min_by_key(|(d, _)| *d)?;
    (distance <= 1 + typed.len().min(best.len()) / 4).then_some(best)
}

/// Edit distance: letters to insert, delete, replace, or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let exchanged = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = exchanged.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood_and_other_words_are_not() {
        let known = ["SYNC_BASE", "SYNC_PORT", "SYNC_HOST", "MAX_SYNC_PAYLOAD_MEGS"];
        let cases = [
            ("SYNC_PROT", Some("SYNC_PORT")),
            ("sync_port", Some("SYNC_PORT")),
            ("SYNC_BASES", Some("SYNC_BASE")),
            ("SYNC_PAYLOAD_MEGS", Some("MAX_SYNC_PAYLOAD_MEGS")),
            ("SYNC_COLOUR_SCHEME", None),
            ("", None),
        ];
        for (typed, meant) in cases {
            assert_eq!(nearest(typed, known.into_iter()), meant, "{typed}");
        }
    }
}
