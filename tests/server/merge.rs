//! Which of two changed rows wins (collection-format.md 12.3 to 12.6, with the recommended differences of 16).

use serde_json::{Value, json};

use crate::client::Device;
use crate::harness::{TestServer, collection};
use crate::sessions::{BASIC, card, note};

const NO_CHANGES: &str = r#"{"models":[],"decks":[[],[]],"tags":[]}"#;

/// Twelve notes with cards, modified at 100: those with an id over 6 since the device synced last, at usn 5.
const ROWS: &str = "
    UPDATE col SET usn = 6;
    DELETE FROM cards; DELETE FROM notes; DELETE FROM revlog;
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12)
      INSERT INTO notes SELECT i, 'g' || i, 1795428020052, 100, iif(i > 6, 5, 4), '', 'ours' || char(31), 'ours', 1, 0, '' FROM n;
    INSERT INTO cards SELECT id, id, 1, 0, 100, usn, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 'ours' FROM notes;
    INSERT INTO revlog VALUES (1, 1, 4, 1, 1, 1, 1, 1, 1)";

fn server() -> TestServer {
    TestServer::holding(&collection(ROWS), &[])
}

/// A whole session of a device with this usn; returns what the server sent in it.
fn sync(device: &Device, usn: i64, changes: &str, chunk: &Value) -> (Value, Value, Vec<Value>) {
    let graves = device.start(usn, true).ok();
    let theirs = device.apply_changes(changes).ok();
    let chunks = device.chunks();
    device.apply_chunk(&chunk.to_string()).ok();
    device.finish();
    (graves, theirs, chunks)
}

fn with(mut row: Value, changes: &[(usize, Value)]) -> Value {
    changes.iter().for_each(|(column, value)| row[*column] = value.clone());
    row
}

#[test]
fn a_row_wins_if_ours_is_unchanged_or_older() {
    let server = server();
    let stamps = [(1, 99), (2, 100), (3, 101), (7, 99), (8, 100), (9, 101), (20, 1)];
    let notes: Vec<_> = stamps.iter().map(|(id, modified)| note(*id, *modified, "theirs\u{1f}")).collect();
    let cards: Vec<_> =
        stamps.iter().map(|(id, modified)| with(card(*id, *modified), &[(17, "theirs".into())])).collect();
    sync(&server.device(), 5, NO_CHANGES, &json!({ "notes": notes, "cards": cards }));
    // Not changed since the client's last sync: always. Changed: only if the client's is newer; on a tie ours stays.
    let theirs = "SELECT group_concat(id, ' ') FROM";
    let expected = ["1 2 3 9 20"];
    assert_eq!(server.rows(&format!("{theirs} notes WHERE flds LIKE 'theirs%'")), expected);
    assert_eq!(server.rows(&format!("{theirs} cards WHERE data = 'theirs'")), expected);
    assert_eq!(server.rows("SELECT sfld FROM notes WHERE id = 1"), ["theirs"]);
}

#[test]
fn whatever_usn_a_row_claims_it_gets_the_servers() {
    let server = server();
    let deck = json!({ "id": 5, "name": "new", "mod": 1, "usn": 99, "dyn": 0, "conf": 1, "lrnToday": [0, 0], "revToday": [0, 0], "newToday": [0, 0], "timeToday": [0, 0], "collapsed": false, "desc": "", "extendNew": 0, "extendRev": 0 });
    let changes = json!({ "models": [], "decks": [[deck], []], "tags": ["new"], "conf": {"new": 1} });
    let rows = |usn: i64| {
        let id = 30 + usn;
        json!({
            "notes": [with(note(id, 1, "a\u{1f}"), &[(4, usn.into())])],
            "cards": [with(card(id, 1), &[(5, usn.into())])],
            "revlog": [[id, id, usn, 1, 1, 1, 1, 1, 1]],
        })
    };
    let device = server.device();
    device.start(6, true).ok();
    device.apply_changes(&changes.to_string()).ok();
    for usn in [-7, -1, 0, 99, 1000] {
        device.apply_chunk(&rows(usn).to_string()).ok();
    }
    device.apply_graves(r#"{"cards":[1000],"notes":[],"decks":[]}"#).ok();
    device.finish();
    for sql in [
        "notes WHERE id > 12",
        "cards WHERE id > 12",
        "revlog WHERE id > 1",
        "graves",
        "decks WHERE id = 5",
        "tags WHERE tag = 'new'",
        "config WHERE KEY = 'new'",
    ] {
        assert_eq!(server.rows(&format!("SELECT DISTINCT usn FROM {sql}")), ["6"], "{sql}");
    }
    server.assert_syncs();
}

/// 2.1.44 keeps the ids of what it imports again.
#[test]
fn a_deletion_of_what_came_back_is_told_again() {
    let server = server();
    let old = server.device();
    let delete = |device: &Device| {
        let usn = device.begin();
        device.apply_graves(r#"{"cards":[1],"notes":[1],"decks":[]}"#).ok();
        device.finish();
        usn
    };
    let first = delete(&old);
    sync(&old, first, NO_CHANGES, &json!({ "notes": [note(1, 200, "back\u{1f}")], "cards": [card(1, 200)] }));
    // Another device gets it back here.
    let usn = server.rows("SELECT usn FROM col")[0].parse().unwrap();
    let second = delete(&old);
    assert!(second >= usn && usn > first);
    let (told, ..) = sync(&server.device(), usn, NO_CHANGES, &json!({}));
    assert_eq!(told, json!({ "cards": [1], "notes": [1], "decks": [] }));
    server.assert_syncs();
}

#[test]
fn reviews_and_graves_may_come_twice() {
    let server = server();
    let device = server.device();
    let reviews = json!({ "revlog": [[1, 9, 9, 9, 9, 9, 9, 9, 1], [2, 9, 9, 3, 9, 9, 9, 9, 1]] });
    let graves = r#"{"cards":[1,555],"notes":["2",666],"decks":[777]}"#;
    for _ in 0..2 {
        let usn = device.begin();
        assert!(usn >= 6);
        for _ in 0..2 {
            device.apply_graves(graves).ok();
            device.apply_chunk(&reviews.to_string()).ok();
        }
        device.finish();
    }
    // The first one stays, with its usn.
    assert_eq!(server.rows("SELECT id, cid, ease FROM revlog ORDER BY id"), ["1|1|1", "2|9|3"]);
    let expected = ["1|0|6", "2|1|6", "555|0|6", "666|1|6", "777|2|6"];
    assert_eq!(server.rows("SELECT oid, type, usn FROM graves ORDER BY oid"), expected);
    // The card of the note and the note of the card are still there: clients list both.
    assert_eq!(server.rows("SELECT count(*) FROM cards WHERE id = 2"), ["1"]);
    assert_eq!(server.rows("SELECT count(*) FROM notes WHERE id = 1"), ["1"]);
    // Re-adding does not remove a grave, and unknown ids are told to the next device.
    let (told, ..) = sync(&server.device(), 6, NO_CHANGES, &json!({ "cards": [card(1, 9)] }));
    assert_eq!(told, json!({ "cards": [1, 555], "notes": [2, 666], "decks": [777] }));
    assert_eq!(server.rows("SELECT count(*) FROM graves"), ["5"]);
    server.assert_syncs();
}

#[test]
fn whoever_has_a_name_gives_it_to_the_newcomer_and_both_devices_hear_of_it() {
    let server = server();
    let objects: Value = serde_json::from_slice(include_bytes!("../vectors/rich18.objects.json")).unwrap();
    let of = |list: &str, id: i64| {
        objects[list].as_array().unwrap().iter().find(|object| object["id"] == id).unwrap().clone()
    };
    let (mut notetype, mut deck) = (of("notetypes", BASIC), of("decks", 1));
    (notetype["id"], notetype["name"]) = (5.into(), "bAsIc".into());
    (deck["id"], deck["name"]) = (5.into(), "DEFAULT".into());
    let mut twin = deck.clone();
    twin["id"] = 6.into();
    let changes = json!({ "models": [notetype], "decks": [[deck, twin], []], "tags": [] }).to_string();
    let device = server.device();
    sync(&device, 6, &changes, &json!({}));
    let names = |table: &str, first: i64| {
        server.rows(&format!("SELECT name, usn FROM {table} WHERE id IN ({first}, 5, 6) ORDER BY id"))
    };
    assert_eq!(names("notetypes", BASIC), ["bAsIc|6", "Basic+|7"]);
    assert_eq!(names("decks", 1), ["Default+|7", "DEFAULT++|7", "DEFAULT|6"]);
    let (_, news, _) = sync(&device, 7, NO_CHANGES, &json!({}));
    assert_eq!(news["models"][0]["name"], "Basic+");
    let mut told: Vec<_> = news["decks"][0].as_array().unwrap().iter().map(|deck| &deck["name"]).collect();
    told.sort_by_key(|name| name.to_string());
    assert_eq!(told, ["DEFAULT++", "Default+"]);
    let (_, news, _) = sync(&device, 8, NO_CHANGES, &json!({}));
    assert_eq!(news, serde_json::from_str::<Value>(NO_CHANGES).unwrap());
}

#[test]
fn an_object_wins_if_it_is_not_older() {
    let server = TestServer::holding(&collection("UPDATE decks SET mtime_secs = 100"), &[]);
    let objects: Value = serde_json::from_slice(include_bytes!("../vectors/rich18.objects.json")).unwrap();
    for (modified, name) in [(99, "Default"), (100, "tie"), (101, "newer"), (50, "newer")] {
        let mut deck =
            objects["decks"].as_array().unwrap().iter().find(|deck| deck["id"] == 1).unwrap().clone();
        deck["name"] = if modified == 50 { "older" } else { name }.into();
        deck["mod"] = modified.into();
        let changes = json!({ "models": [], "decks": [[deck], []], "tags": [] }).to_string();
        let device = server.device();
        device.begin();
        device.apply_changes(&changes).ok();
        device.finish();
        assert_eq!(server.rows("SELECT name FROM decks WHERE id = 1"), [name]);
    }
}

#[test]
fn tags_take_the_spelling_of_their_parents_and_differ_beyond_case() {
    let server = TestServer::holding(&collection(""), &[]);
    let changes = json!({ "models": [], "decks": [[], []], "tags": ["BAR", "bAR::x", "bar::BAZ", "FOO::a::B", "foo::A::c", " e\u{301} ", "", "::"] });
    let device = server.device();
    device.begin();
    device.apply_changes(&changes.to_string()).ok();
    device.finish();
    let expected = ["Bar::x", "blank", "blank::blank", "foo::A::c", "foo::a::B", "\u{e9}"];
    let mut found = server.rows("SELECT tag FROM tags WHERE usn = 1");
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(server.rows("SELECT count(*) FROM tags WHERE tag IN ('Bar', 'Bar::baz')"), ["2"]);
}

#[test]
fn the_config_is_replaced_whole_or_not_at_all() {
    let server = TestServer::holding(&collection(""), &[]);
    let device = server.device();
    let change = |conf: &str| {
        device.begin();
        device.apply_changes(&format!(r#"{{"models":[],"decks":[[],[]],"tags":[],{conf}}}"#)).ok();
        device.finish();
    };
    let before = server.rows("SELECT count(*) > 20, (SELECT crt FROM col) FROM config");
    change(r#""conf":null,"crt":null"#);
    assert_eq!(server.rows("SELECT count(*) > 20, (SELECT crt FROM col) FROM config"), before);
    change(r#""conf":{"b":[1.50, {"\u00e9":null}],"a":1e2},"crt":1600000000"#);
    let expected = ["a|1e2", "b|[1.50, {\"\\u00e9\":null}]"];
    assert_eq!(server.rows("SELECT KEY, val FROM config WHERE KEY IN ('a', 'b') ORDER BY KEY"), expected);
    assert_eq!(server.rows("SELECT group_concat(KEY) FROM config"), ["a,b"]);
    assert_eq!(server.rows("SELECT crt FROM col"), ["1600000000"]);
    // A device whose own is older gets it as it came.
    let other = server.device();
    other.start(0, false).ok();
    let theirs = other.apply_changes(NO_CHANGES).unpacked();
    assert!(String::from_utf8(theirs).unwrap().contains(r#""b":[1.50, {"\u00e9":null}]"#));
}

#[test]
fn chunks_hold_every_row_once_whatever_their_number() {
    for rows in [0, 1, 249, 250, 251, 500, 501] {
        // A third each of reviews, cards and notes, with usns in no order.
        let server = TestServer::holding(
            &collection(&format!(
                "UPDATE col SET usn = 9;
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                   INSERT INTO revlog SELECT i, i, 5 + i % 3, 1, 1, 1, 1, 1, 1 FROM n WHERE i % 3 = 0 AND i <= {rows};
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                   INSERT INTO cards SELECT i, i, 1, 0, 1, 7 - i % 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, '' FROM n WHERE i % 3 = 1 AND i <= {rows};
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                   INSERT INTO notes SELECT i, i, 1795428020052, 1, 8 - i % 3, '', 'f' || char(31), 'f', 1, 0, '' FROM n WHERE i % 3 = 2 AND i <= {rows}"
            )),
            &[],
        );
        let device = server.device();
        device.start(5, true).ok();
        let chunks = device.chunks();
        let mut ids = Vec::new();
        for chunk in &chunks {
            let of = |table: &str| chunk.get(table).and_then(Value::as_array).cloned().unwrap_or_default();
            let all = [of("revlog"), of("cards"), of("notes")].concat();
            assert!(all.len() <= 250);
            ids.extend(all.iter().map(|row| row[0].as_i64().unwrap()));
        }
        ids.sort_unstable();
        assert_eq!(ids, (1..=rows).collect::<Vec<_>>(), "{rows} rows");
        assert!(chunks.len() as i64 <= rows / 250 + 1, "{rows} rows in {} chunks", chunks.len());
        // Rows that the client sends in this session are not sent back to it.
        device.apply_chunk(&json!({ "notes": [note(9999, 1, "new\u{1f}")] }).to_string()).ok();
        for _ in 0..2 {
            assert_eq!(device.call("chunk", "{}").ok(), json!({ "done": true }));
        }
        device.finish();
    }
}

#[test]
fn usn_minus_one_asks_for_what_is_pending_and_gets_nothing() {
    let server = server();
    let device = server.device();
    let rows = json!({ "notes": [note(7, 99, "theirs\u{1f}"), note(1, 1, "theirs\u{1f}")] });
    let (graves, changes, chunks) = sync(&device, -1, NO_CHANGES, &rows);
    assert_eq!(graves, json!({ "cards": [], "notes": [], "decks": [] }));
    assert_eq!(changes, serde_json::from_str::<Value>(NO_CHANGES).unwrap());
    assert_eq!(chunks, [json!({ "done": true })]);
    // Nothing of the server's counts as changed.
    assert_eq!(server.rows("SELECT id FROM notes WHERE flds LIKE 'theirs%'"), ["1", "7"]);
    // Usn 0 asks for everything.
    let (.., chunks) = sync(&server.device(), 0, NO_CHANGES, &json!({}));
    assert_eq!(chunks[0]["notes"].as_array().unwrap().len(), 12);
}

#[test]
fn a_new_day_unburies_cards_once() {
    let buried = "
        UPDATE col SET crt = 1600000000;
        INSERT OR REPLACE INTO config VALUES ('lastUnburied', 0, 0, CAST('1' AS BLOB));
        DELETE FROM cards;
        INSERT INTO cards (id, nid, did, ord, mod, usn, type, queue, due, ivl, factor, reps, lapses, left, odue, odid, flags, data)
          SELECT column1, 1, 1, 0, 100, 0, column2, column3, column4, 0, 0, 0, 0, 0, 0, 0, 0, '' FROM (VALUES
            (1, 0, -2, 5), (2, 2, -3, 5), (3, 1, -2, 1700000000), (4, 1, -3, 900), (5, 3, -2, 900), (6, 0, -1, 5), (7, 2, 2, 5))";
    let server = TestServer::holding(&collection(buried), &[]);
    let device = server.device();
    device.begin();
    // An uncommitted session changes nothing.
    device.call("abort", "{}").ok();
    assert_eq!(server.rows("SELECT count(*) FROM cards WHERE queue < -1"), ["5"]);
    device.begin();
    device.finish();
    assert_eq!(
        server.rows(
            "SELECT group_concat(queue, ' '), max(usn), max(mod) FROM (SELECT * FROM cards ORDER BY id)"
        ),
        ["0 2 1 3 3 -1 2|0|100"]
    );
    let day: i64 =
        server.rows("SELECT val FROM config WHERE KEY = 'lastUnburied' AND usn = 1")[0].parse().unwrap();
    assert!(day >= 0);
    // A card that is buried later that day stays buried.
    let usn = device.begin();
    device.apply_chunk(&json!({ "cards": [with(card(1, 900), &[(7, (-2).into())])] }).to_string()).ok();
    device.finish();
    device.begin();
    device.finish();
    assert_eq!(server.rows("SELECT queue, usn FROM cards WHERE id = 1"), [format!("-2|{usn}")]);
}
