//! Zips that no client sends: each is refused with 400, takes almost no memory, and changes nothing.

use serde_json::json;

use crate::client::{Server, folder};
use crate::zip::{Entry, write_zip, zip_of};

/// How much the peak of the server's memory may grow over all of them. Half of it is the zstd window.
const GROWTH_KIB: u64 = 6 * 1024;

fn meta(text: &str) -> Entry {
    Entry::stored("_meta", text.as_bytes())
}

/// A zip with one good change and one bad entry, which must take the good one with it.
fn beside_a_good_one(bad: Entry) -> Vec<u8> {
    let names = json!([["good", "0"], ["bad", bad.name]]).to_string();
    write_zip(&[Entry::stored("0", b"good"), bad, meta(&names)])
}

fn changed(entry: Entry, change: impl FnOnce(&mut Entry)) -> Entry {
    let mut entry = entry;
    change(&mut entry);
    entry
}

fn hostile_zips() -> Vec<(String, Vec<u8>)> {
    let text = b"some text ".repeat(1000);
    let (stored, deflated) = (Entry::stored("1", &text), Entry::deflated("1", &text));
    let good = zip_of(&[("good", Some(b"good")), ("more", Some(&text))]);
    let bomb = Entry::deflated("1", &vec![0; 120 << 20]);
    let small_bomb = Entry::deflated("1", &vec![0; 20 << 20]);
    let mut cases = vec![
        ("nothing but a word", b"PK".to_vec()),
        ("random bytes", (0..5000u32).map(|i| (i * i % 251) as u8).collect()),
        ("an empty zip", write_zip(&[])),
        ("no _meta", write_zip(&[Entry::stored("0", b"x")])),
        ("two _meta", write_zip(&[meta(r#"[["good",null]]"#), meta(r#"[["good",null]]"#)])),
        ("two entries of a name", {
            write_zip(&[Entry::stored("0", b"x"), Entry::stored("0", b"y"), meta(r#"[["good","0"]]"#)])
        }),
        ("_meta is no JSON", write_zip(&[meta("hello")])),
        ("_meta is an object", write_zip(&[meta(r#"{"0":"good"}"#)])),
        ("_meta has numbers", write_zip(&[Entry::stored("0", b"x"), meta(r#"[["good",0]]"#)])),
        ("_meta over 50 KiB", write_zip(&[meta(&format!("[{}]", " ".repeat(51 * 1024)))])),
        ("_meta a bomb", write_zip(&[Entry::deflated("_meta", &vec![b' '; 50 << 20])])),
        ("_meta deeply nested", write_zip(&[meta(&"[".repeat(40_000))])),
        ("_meta is a file, too", write_zip(&[meta(r#"[["good","_meta"]]"#)])),
        ("an entry that is not there", write_zip(&[meta(r#"[["good","7"]]"#)])),
        ("two files of one entry", {
            write_zip(&[Entry::stored("0", b"x"), meta(r#"[["good","0"],["more","0"]]"#)])
        }),
        ("26 changes", {
            let names: Vec<_> = (0..26).map(|n| json!([format!("good {n}"), null])).collect();
            write_zip(&[meta(&json!(names).to_string())])
        }),
        ("an empty file", beside_a_good_one(Entry::stored("1", b""))),
        ("a wrong checksum", beside_a_good_one(changed(stored.clone(), |entry| entry.crc ^= 1))),
        ("a wrong checksum, deflated", beside_a_good_one(changed(deflated.clone(), |entry| entry.crc ^= 1))),
        ("stored, longer than it says", beside_a_good_one(changed(stored.clone(), |entry| entry.bytes -= 1))),
        (
            "stored, shorter than it says",
            beside_a_good_one(changed(stored.clone(), |entry| entry.bytes += 1)),
        ),
        (
            "deflated, longer than it says",
            beside_a_good_one(changed(deflated.clone(), |entry| entry.bytes -= 1)),
        ),
        ("deflated, shorter than it says", {
            beside_a_good_one(changed(deflated.clone(), |entry| entry.bytes += 1))
        }),
        (
            "deflated, cut off",
            beside_a_good_one(changed(deflated.clone(), |entry| {
                entry.packed.truncate(entry.packed.len() - 1)
            })),
        ),
        ("deflated, with something behind", {
            beside_a_good_one(changed(deflated.clone(), |entry| entry.packed.push(0)))
        }),
        ("deflated, damaged", beside_a_good_one(changed(deflated.clone(), |entry| entry.packed[20] ^= 0x55))),
        ("no deflate at all", beside_a_good_one(changed(stored.clone(), |entry| entry.method = 8))),
        ("an unknown method", beside_a_good_one(changed(stored.clone(), |entry| entry.method = 12))),
        ("encrypted", beside_a_good_one(changed(stored.clone(), |entry| entry.flags = 1))),
        (
            "an entry in another one's place",
            beside_a_good_one(changed(stored.clone(), |entry| entry.head_at = Some(0))),
        ),
        (
            "an entry behind the end",
            beside_a_good_one(changed(stored.clone(), |entry| entry.head_at = Some(1 << 30))),
        ),
        ("an entry in the directory", {
            beside_a_good_one(changed(stored.clone(), |entry| entry.head_at = Some(text.len() as u32 + 150)))
        }),
        ("entries that overlap", overlapping()),
        ("a bomb that says so", beside_a_good_one(bomb.clone())),
        ("a bomb that does not say so", {
            beside_a_good_one(changed(bomb.clone(), |entry| entry.bytes = 1 << 20))
        }),
        ("many bombs", {
            let entries: Vec<_> =
                (0..10).map(|n| Entry { name: n.to_string(), ..small_bomb.clone() }).collect();
            let names: Vec<_> = (0..10).map(|n| json!([format!("good {n}"), n.to_string()])).collect();
            write_zip(&[entries, vec![meta(&json!(names).to_string())]].concat())
        }),
        ("a thousand entries", {
            let entries: Vec<_> = (0..1000).map(|n| Entry::stored(&n.to_string(), b"x")).collect();
            write_zip(&[entries, vec![meta(r#"[["good","0"]]"#)]].concat())
        }),
        ("100 000 entries", {
            let entries: Vec<_> = (0..100_000).map(|n| Entry::stored(&n.to_string(), b"x")).collect();
            write_zip(&[entries, vec![meta(r#"[["good","0"]]"#)]].concat())
        }),
        ("a comment longer than it says", [&good[..good.len() - 2], b"\x02\0abc"].concat()),
        ("a comment shorter than it says", [&good[..good.len() - 2], b"\x04\0abc"].concat()),
        ("a long comment", [&good[..good.len() - 2], b"\x41\0", &[b'c'; 65]].concat()),
    ];
    for length in [good.len() - 1, good.len() - 30, good.len() / 2, 31, 1] {
        cases.push(("cut off", good[..length].to_vec()));
    }
    let mut cases: Vec<_> = cases.into_iter().map(|(what, zip)| (what.to_owned(), zip)).collect();
    let long = "x".repeat(256);
    let names = [
        "",
        ".",
        "..",
        "../up",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..\\up",
        "a\0b",
        "a\nb",
        "a\u{1b}[31m",
        "u\u{308}",
        &long,
    ];
    for name in names {
        cases.push((format!("add {name:?}"), zip_of(&[("good", Some(b"good")), (name, Some(b"x"))])));
        cases.push((format!("delete {name:?}"), zip_of(&[("good", Some(b"good")), (name, None)])));
    }
    cases
}

/// An entry whose data holds the whole of the next one.
fn overlapping() -> Vec<u8> {
    let inner = Entry::stored("1", b"inner");
    let hidden = write_zip(std::slice::from_ref(&inner));
    let outer = Entry::stored("0", &hidden);
    // The head of "0" is 31 bytes long.
    let inner = Entry { head_at: Some(31), ..inner };
    write_zip(&[outer, inner, meta(r#"[["good","0"],["more","1"]]"#)])
}

#[test]
fn zips_that_no_client_sends_change_nothing() {
    let cases = hostile_zips();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.client();
    client.upload(&[("good", Some(b"as it was")), ("kept", Some(b"kept"))]);
    // The buffers of the first large request are allocated before the measurement begins.
    client.upload(&[("large", Some(&vec![1; 3 << 20]))]);
    let before = (client.changes(), folder(dir.path()));
    let start = server.peak_kib();
    for (what, zip) in &cases {
        let status = client.post("uploadChanges", zip).0;
        assert_eq!(status, 400, "{what}");
        assert!((client.changes(), folder(dir.path())) == before, "{what} changed something");
        let peak = server.peak_kib();
        assert!(peak < start + GROWTH_KIB, "{what}: memory grew from {start} to {peak} KiB");
    }
    println!("{} hostile zips: memory grew from {start} to {} KiB", cases.len(), server.peak_kib());
    let left = std::fs::read_dir(dir.path().join("u")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("new")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(client.upload(&[("good", Some(b"new"))]), json!([1, 4]), "and all is well");
}
