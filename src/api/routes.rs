//! Which handler a path belongs to (sync-protocol.md 1 and 8).

use crate::config::Config;
use crate::http::body::BodyLimits;
use crate::limits_and_timeouts::{
    BESIDE_LARGEST_FILE_BYTES, SMALL_BODY_BYTES, SyncStep, ZSTD_LARGE_WINDOW_BYTES, ZSTD_WINDOW_BYTES,
};

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// A page for people and monitors.
    Page(Page),
    /// A step of a collection or media sync.
    Sync(Method),
    /// Anything else: 404. (The official server answers 400 to unknown methods, and then clients advise their user to
    /// force a one-way sync, although only an address is wrong.)
    Unknown,
}

/// Pages outside the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/`
    Start,
    /// `/health`
    Health,
    /// `/metrics`
    Metrics,
    /// `/root.crt`: the certificate of SYNC_ROOT_CERT.
    RootCertificate,
}

/// The methods below `/sync` and `/msync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Login.
    HostKey,
    /// Reports the state of the server. The client decides what kind of sync is needed.
    Meta,
    /// Opens a session.
    Start,
    /// Deletions from the client.
    ApplyGraves,
    /// Unchunked changes, both ways.
    ApplyChanges,
    /// Rows to the client.
    Chunk,
    /// Rows from the client.
    ApplyChunk,
    /// Compares the row counts of both sides.
    SanityCheck,
    /// Commit.
    Finish,
    /// Roll back.
    Abort,
    /// The whole collection from the client.
    Upload,
    /// The whole collection to the client.
    Download,
    /// Reports the last media usn.
    MediaBegin,
    /// Lists the changes of media files.
    MediaChanges,
    /// Media files and deletions from the client.
    UploadChanges,
    /// Media files to the client.
    DownloadFiles,
    /// Compares the number of media files of both sides.
    MediaSanity,
}

const METHODS: &[(&str, Method)] = &[
    ("hostKey", Method::HostKey),
    ("meta", Method::Meta),
    ("start", Method::Start),
    ("applyGraves", Method::ApplyGraves),
    ("applyChanges", Method::ApplyChanges),
    ("chunk", Method::Chunk),
    ("applyChunk", Method::ApplyChunk),
    ("sanityCheck2", Method::SanityCheck),
    ("finish", Method::Finish),
    ("abort", Method::Abort),
    ("upload", Method::Upload),
    ("download", Method::Download),
];

const MEDIA_METHODS: &[(&str, Method)] = &[
    ("begin", Method::MediaBegin),
    ("mediaChanges", Method::MediaChanges),
    ("uploadChanges", Method::UploadChanges),
    ("downloadFiles", Method::DownloadFiles),
    ("mediaSanity", Method::MediaSanity),
];

impl Route {
    /// Finds the route of a path. Repeated and trailing slashes are ignored, and so is the base path in front. A proxy may
    /// have removed the base path already, and a redirect or the owner may have written it twice.
    pub fn parse(path: &str, base_path: &str) -> Route {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let base: Vec<&str> = base_path.split('/').filter(|segment| !segment.is_empty()).collect();
        let mut rest = &segments[..];
        loop {
            match (Route::of(rest), rest.strip_prefix(&base[..])) {
                (Route::Unknown, Some(shorter)) if !base.is_empty() => rest = shorter,
                (route, _) => return route,
            }
        }
    }

    fn of(segments: &[&str]) -> Route {
        match *segments {
            [] => Route::Page(Page::Start),
            ["health"] => Route::Page(Page::Health),
            ["metrics"] => Route::Page(Page::Metrics),
            ["root.crt"] => Route::Page(Page::RootCertificate),
            ["sync", name] => Route::named(METHODS, name),
            ["msync", name] => Route::named(MEDIA_METHODS, name),
            // AnkiDroid 2.12 to 2.15 requests these if its media address is the bare host.
            [name] if MEDIA_METHODS.iter().any(|(known, _)| *known == name) => {
                Route::named(MEDIA_METHODS, name)
            }
            // The address was entered with the folder that clients append to it.
            ["sync" | "msync", "sync", name] => Route::named(METHODS, name),
            ["sync" | "msync", "msync", name] => Route::named(MEDIA_METHODS, name),
            _ => Route::Unknown,
        }
    }

    fn named(methods: &[(&str, Method)], name: &str) -> Route {
        match methods.iter().find(|(known, _)| *known == name) {
            Some((_, method)) => Route::Sync(*method),
            None => Route::Unknown,
        }
    }
}

impl Method {
    /// Whether the method is part of a session, and so needs a session key.
    pub fn needs_session(self) -> bool {
        use Method::{ApplyChanges, ApplyChunk, ApplyGraves, Chunk, Finish, SanityCheck, Start};
        matches!(self, Start | ApplyGraves | ApplyChanges | Chunk | ApplyChunk | SanityCheck | Finish)
    }

    /// Whether clients usually send several in a row.
    pub fn comes_in_series(self) -> bool {
        matches!(self, Method::ApplyChunk | Method::UploadChanges)
    }

    /// Whether its body holds a few keys or nothing.
    pub fn has_small_body(self) -> bool {
        use Method::{ApplyChanges, ApplyChunk, ApplyGraves, Start, Upload, UploadChanges};
        !matches!(self, Start | ApplyGraves | ApplyChanges | ApplyChunk | Upload | UploadChanges)
    }

    /// Maximum size of its body.
    pub fn caps(self, config: &Config) -> BodyLimits {
        if self.has_small_body() {
            return BodyLimits {
                wire: SMALL_BODY_BYTES,
                decoded: SMALL_BODY_BYTES,
                window: ZSTD_WINDOW_BYTES,
                raised_by: None,
            };
        }
        let window = if self == Method::Upload { ZSTD_LARGE_WINDOW_BYTES } else { ZSTD_WINDOW_BYTES };
        let beside = if self == Method::UploadChanges { BESIDE_LARGEST_FILE_BYTES } else { 0 };
        BodyLimits {
            wire: config.max_payload_bytes.saturating_add(beside),
            decoded: config.max_decoded_bytes(),
            window,
            raised_by: Some("MAX_SYNC_PAYLOAD_MEGS"),
        }
    }
}

/// Whether a path is for a transfer that may take minutes. The server keeps slots free for other requests.
pub fn is_bulk(path: &str) -> bool {
    const BULK: [&str; 4] = ["upload", "download", "uploadChanges", "downloadFiles"];
    BULK.contains(&last_segment(path))
}

/// Whether a path is for a login. The server limits concurrent logins.
pub fn is_login(path: &str) -> bool {
    last_segment(path) == "hostKey"
}

/// What a request with this path is to a normal sync.
pub fn sync_step(path: &str) -> Option<SyncStep> {
    let last = last_segment(path);
    match METHODS.iter().find(|(name, _)| *name == last)?.1 {
        Method::Start => Some(SyncStep::First),
        method => method.needs_session().then_some(SyncStep::Later),
    }
}

fn last_segment(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or_default();
    path.rsplit('/').find(|segment| !segment.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_and_base_paths_are_tolerated() {
        let cases = [
            ("/", "", Route::Page(Page::Start)),
            ("/health", "", Route::Page(Page::Health)),
            ("/sync/meta", "", Route::Sync(Method::Meta)),
            ("//sync//meta/", "", Route::Sync(Method::Meta)),
            ("/anki/sync/sanityCheck2", "anki", Route::Sync(Method::SanityCheck)),
            ("/sync/upload", "anki", Route::Sync(Method::Upload)),
            ("/a/b/", "a/b", Route::Page(Page::Start)),
            ("/sync/Meta", "", Route::Unknown),
            ("/sync", "", Route::Unknown),
            ("/sync/meta/x", "", Route::Unknown),
            ("/msync/begin", "", Route::Sync(Method::MediaBegin)),
            ("//msync//downloadFiles/", "", Route::Sync(Method::DownloadFiles)),
            ("/sync/begin", "", Route::Unknown),
            ("/msync/meta", "", Route::Unknown),
            ("/msync/nothing", "", Route::Unknown),
            ("/begin", "", Route::Sync(Method::MediaBegin)),
            ("//mediaSanity/", "anki", Route::Sync(Method::MediaSanity)),
            ("/anki/uploadChanges", "anki", Route::Sync(Method::UploadChanges)),
            ("/meta", "", Route::Unknown),
            ("/anki/sync/meta", "", Route::Unknown),
            ("/sync/sync/meta", "", Route::Sync(Method::Meta)),
            ("/sync/msync/begin", "", Route::Sync(Method::MediaBegin)),
            ("/msync/sync/hostKey", "", Route::Sync(Method::HostKey)),
            ("/anki/anki/sync/meta", "anki", Route::Sync(Method::Meta)),
            ("/anki/sync/sync/meta", "anki", Route::Sync(Method::Meta)),
            ("/a/b/a/b/", "a/b", Route::Page(Page::Start)),
            ("/sync/sync/meta", "sync", Route::Sync(Method::Meta)),
            ("/sync/meta", "sync", Route::Sync(Method::Meta)),
            ("/sync/sync/sync/meta", "", Route::Unknown),
            ("/favicon.ico", "", Route::Unknown),
        ];
        for (path, base_path, expected) in cases {
            assert_eq!(Route::parse(path, base_path), expected, "{path}");
        }
    }

    #[test]
    fn logins_are_known_by_their_paths() {
        assert!(is_login("/sync/hostKey") && is_login("//anki/sync/hostKey/?x=y") && !is_login("/hostKeys"));
    }

    #[test]
    fn bulk_transfers_are_known_by_their_paths() {
        for (path, bulk) in
            [("/sync/upload", true), ("/x//sync/download/", true), ("/sync/uploads", false), ("/", false)]
        {
            assert_eq!(is_bulk(path), bulk, "{path}");
            assert!(!is_login(path), "{path}");
        }
    }
}
