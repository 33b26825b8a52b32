//! The value of SYNC_CORS_ORIGINS: from which web pages a browser may send requests.

/// Origins as browsers send them, such as `https://deck.example`, or `*` for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Vec<String>);

impl Origins {
    /// Parses a list that is separated by commas or spaces; `None` if an entry is no origin.
    pub fn parse(text: &str) -> Option<Origins> {
        let entries = text.split([',', ' ']).filter(|entry| !entry.is_empty());
        entries
            .map(|entry| is_origin(entry).then(|| entry.to_ascii_lowercase()))
            .collect::<Option<_>>()
            .map(Origins)
    }

    /// Whether pages of this origin may send requests. A text that is not an origin is never allowed, because it
    /// becomes a header of the response.
    pub fn allow(&self, origin: &str) -> bool {
        let is_listed = |entry: &String| entry == "*" || entry.eq_ignore_ascii_case(origin);
        (origin == "null" || is_origin(origin)) && self.0.iter().any(is_listed)
    }
}

/// Whether this is a scheme, a host and possibly a port, without a path.
fn is_origin(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~:[]".contains(c);
    text == "*"
        || text.split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty()
                && !host.is_empty()
                && scheme.chars().all(is_plain)
                && host.chars().all(is_plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_origins_are_allowed() {
        let some = Origins::parse("https://deck.example, http://[::1]:3000 app://anki").unwrap();
        for origin in ["https://deck.example", "https://Deck.example", "http://[::1]:3000", "app://anki"] {
            assert!(some.allow(origin), "{origin}");
        }
        for origin in
            ["http://deck.example", "https://deck.example:444", "https://a.deck.example", "null", "", "*"]
        {
            assert!(!some.allow(origin), "{origin}");
        }
        let all = Origins::parse("*").unwrap();
        assert!(
            all.allow("https://any")
                && all.allow("null")
                && !all.allow("https://x\r\nA: b")
                && !all.allow("x")
        );
        assert!(!Origins::parse("").unwrap().allow("https://any"));
        for wrong in ["deck.example", "https://deck.example/", "https://", "https://a https://b/c"] {
            assert_eq!(Origins::parse(wrong), None, "{wrong}");
        }
    }
}
