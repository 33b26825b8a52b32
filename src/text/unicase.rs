//! The collation `unicase` (spec, collection-format.md 2.1): full case folding, compared by code points.
//!
//! The crate is pinned to exactly 2.6.0, because its order is stored: four indexes of every collection are sorted by it.
//! Clients run `PRAGMA integrity_check` with their own copy, which is 2.6.0. This release yields the three characters of
//! a long folding in the order third, first, second. Later releases fixed that: their order of those 16 characters (and
//! of letters newer than Unicode 12.1) makes a sound index look corrupt.
//!
//! The crate folds while it compares: no allocation, linear in the shorter text, and no character makes it panic
//! (tested below for each of them).

use std::cmp::Ordering;

use ::unicase::UniCase;

/// Orders two texts as the collation does: equal texts may differ in case, but not in normalisation (spec 2.1).
pub fn compare(a: &str, b: &str) -> Ordering {
    UniCase::new(a).cmp(&UniCase::new(b))
}

/// Whether two names are equal under the collation (spec 2.1).
pub fn equal(a: &str, b: &str) -> bool {
    UniCase::new(a) == UniCase::new(b)
}

/// A text that is ordered by the collation.
#[derive(Clone, Debug)]
pub struct Unicase(pub String);

impl PartialEq for Unicase {
    fn eq(&self, other: &Unicase) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Unicase {}

impl PartialOrd for Unicase {
    fn partial_cmp(&self, other: &Unicase) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Unicase {
    fn cmp(&self, other: &Unicase) -> Ordering {
        compare(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_as_release_2_6_0_does() {
        let equals = [
            ("", ""),
            ("Deck", "dECK"),
            ("\u{df}", "SS"),
            ("\u{1e9e}", "ss"),
            ("\u{3a3}\u{3c2}", "\u{3c3}\u{3c3}"),
            ("\u{212a}", "k"),
            ("\u{130}", "i\u{307}"),
            ("\u{fb01}", "fi"),
        ];
        for (a, b) in equals {
            assert!(equal(a, b), "{a:?} {b:?}");
            assert_eq!(compare(a, b), Ordering::Equal, "{a:?} {b:?}");
        }
        let ascending = [
            ("", "a"),
            ("a", "B"),
            ("[", "_"),
            // Letters are compared in lower case, so these come before them.
            ("_", "A"),
            ("a", "aa"),
            ("a\u{1f}z", "aa"),
            ("i", "\u{131}"),
            ("e\u{301}", "\u{e9}"),
            ("ffi", "\u{fb03}"),
            // Added in Unicode 14, so release 2.6.0 has no lower case for it; with a later table the two are equal.
            ("\u{2c2f}", "\u{2c5f}"),
        ];
        for (a, b) in ascending {
            assert!(!equal(a, b), "{a:?} {b:?}");
            assert_eq!(compare(a, b), Ordering::Less, "{a:?} {b:?}");
            assert_eq!(compare(b, a), Ordering::Greater, "{a:?} {b:?}");
        }
    }

    #[test]
    fn foldings_of_three_characters_come_out_rotated() {
        let rotated = [
            ("\u{390}", "\u{301}\u{3b9}\u{308}"),
            ("\u{3b0}", "\u{301}\u{3c5}\u{308}"),
            ("\u{1f52}", "\u{300}\u{3c5}\u{313}"),
            ("\u{1f54}", "\u{301}\u{3c5}\u{313}"),
            ("\u{1f56}", "\u{342}\u{3c5}\u{313}"),
            ("\u{1fb7}", "\u{3b9}\u{3b1}\u{342}"),
            ("\u{1fc7}", "\u{3b9}\u{3b7}\u{342}"),
            ("\u{1fd2}", "\u{300}\u{3b9}\u{308}"),
            ("\u{1fd3}", "\u{301}\u{3b9}\u{308}"),
            ("\u{1fd7}", "\u{342}\u{3b9}\u{308}"),
            ("\u{1fe2}", "\u{300}\u{3c5}\u{308}"),
            ("\u{1fe3}", "\u{301}\u{3c5}\u{308}"),
            ("\u{1fe7}", "\u{342}\u{3c5}\u{308}"),
            ("\u{1ff7}", "\u{3b9}\u{3c9}\u{342}"),
            ("\u{fb03}", "iff"),
            ("\u{fb04}", "lff"),
        ];
        for (c, folding) in rotated {
            assert!(equal(c, folding), "{c:?}");
            assert_eq!(compare(c, folding), Ordering::Equal, "{c:?}");
        }
    }

    #[test]
    fn no_character_makes_the_crate_panic() {
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            assert!(equal(&text, &text), "{c:?}");
            assert_eq!(compare(&text, ""), Ordering::Greater, "{c:?}");
        }
    }
}
