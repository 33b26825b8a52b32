//! Counts in messages.

use std::fmt::Display;

/// "1 file", "2 files".
pub fn counted(count: impl Display, noun: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    count + " " + noun + plural
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_not_plural() {
        let all = [0, 1, 2, 11].map(|count: u64| counted(count, "media file"));
        assert_eq!(all, ["0 media files", "1 media file", "2 media files", "11 media files"]);
    }
}
