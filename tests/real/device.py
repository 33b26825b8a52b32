"""A device: the real Anki client, without its window, on a collection in a folder of its own."""

import time
from pathlib import Path

from anki.collection import AddNoteRequest, Collection
from anki.notes import Note
from anki.sync_pb2 import SyncAuth, SyncCollectionResponse

# What `sync_collection` tells of what is (still) needed. NO_CHANGES after a normal sync, too.
NO_CHANGES = SyncCollectionResponse.NO_CHANGES
FULL_SYNC = SyncCollectionResponse.FULL_SYNC
FULL_DOWNLOAD = SyncCollectionResponse.FULL_DOWNLOAD
FULL_UPLOAD = SyncCollectionResponse.FULL_UPLOAD


class Device:
    def __init__(self, folder: Path, url: str, user: str, password: str):
        folder.mkdir(parents=True)
        self.name, self.url, self.user, self.password = folder.name, url, user, password
        self.col = Collection(str(folder / "collection.anki2"))
        # The client writes a key into the config when it first wants to know the day, which a sync does, too.
        assert self.col.sched.day_cutoff
        self.auth: SyncAuth | None = None

    # syncing

    def login(self) -> str:
        """Asks for the host key with name and password, and keeps it."""
        self.auth = self.col.sync_login(self.user, self.password, self.url)
        self.auth.endpoint = self.url
        return self.auth.hkey

    def use_key(self, hkey: str) -> None:
        """What a device does that has logged in long ago."""
        self.auth = SyncAuth(hkey=hkey, endpoint=self.url)

    def use(self, url: str) -> None:
        """Reaches the account by another way from now on."""
        self.url = url
        if self.auth:
            self.auth.endpoint = url

    def try_sync(self) -> int:
        """One press on the sync button; tells which full sync is asked for, if one is."""
        if not self.auth:
            self.login()
        required = self.col.sync_collection(self.auth, False).required
        self.col.models._clear_cache()  # outlives a sync; the desktop is told by its undo machinery
        return required

    def sync(self) -> None:
        required = self.try_sync()
        assert required == NO_CHANGES, f"{self.name} was asked for a full sync: {required}"

    def upload(self) -> None:
        self._full_sync(upload=True)

    def download(self) -> None:
        self._full_sync(upload=False)

    def _full_sync(self, upload: bool) -> None:
        if not self.auth:
            self.login()
        self.col.close_for_full_sync()
        try:
            self.col.full_upload_or_download(auth=self.auth, server_usn=None, upload=upload)
        finally:
            self.col.reopen(after_full_sync=True)
            self.col.models._clear_cache()

    def close(self) -> None:
        if self.col.db:
            self.col.close()

    # working

    def add_note(self, front: str, back: str = "", deck: str = "Default", notetype: str = "Basic", tags: str = "") -> Note:
        note = self.col.new_note(self.col.models.by_name(notetype))
        note.fields[0], note.fields[1] = front, back
        note.set_tags_from_str(tags)
        self.col.add_note(note, self.col.decks.id(deck))
        self._outlive_ids("notes", "cards", "decks")
        return note

    def add_notes(self, count: int, text: str = "note") -> None:
        """Many at once; one transaction each would take the time of many fsyncs."""
        basic, deck = self.col.models.by_name("Basic"), self.col.decks.id("Default")
        notes = [self.col.new_note(basic) for _ in range(count)]
        for n, note in enumerate(notes):
            note.fields = [f"{text} {n}", "back"]
        self.col.add_notes([AddNoteRequest(note, deck) for note in notes])
        self._outlive_ids("notes", "cards")

    def add_deck(self, name: str) -> int:
        did = self.col.decks.id(name)
        self._outlive_ids("decks")
        return did

    def add_notetype(self, name: str) -> int:
        made = self.col.models.copy(self.col.models.by_name("Basic"), add=False)
        made["name"] = name
        ntid = self.col.models.add_dict(made).id
        self._outlive_ids("notetypes")
        return ntid

    def review(self, count: int = 1, deck: str = "Default", ease: int = 3) -> None:
        """Answers the cards of a deck as they come."""
        self.col.decks.select(self.col.decks.id(deck))
        for _ in range(count):
            card = self.col.sched.getCard()
            assert card, f"{self.name} has nothing to review"
            self._stay_in_second()
            self.col.sched.answerCard(card, ease)
            self._outlive_ids("revlog")

    def _stay_in_second(self) -> None:
        """Waits if a second is nearly over. An answer is stamped twice, on the card in whole seconds and in the history in
        milliseconds, and the client's own check calls it a fault if they are not of the same second."""
        while time.time() % 1 > 0.8:
            time.sleep(0.01)

    def _outlive_ids(self, *tables: str) -> None:
        """Waits until the clock has passed the ids just given. They are milliseconds; two people never make something
        in the same one, but two devices in a story do, and would then have made the same thing."""
        newest = max(self.col.db.scalar(f"select max(id) from {table}") for table in tables)
        while time.time() * 1000 <= newest + 1:
            pass

    def note(self, front: str) -> Note:
        """The one note whose first field is this."""
        (nid,) = self.col.db.list("select id from notes where sfld = ?", front)
        return self.col.get_note(nid)

    def fronts(self) -> list[str]:
        """The sort field of every note."""
        return [str(text) for text in self.col.db.list("select sfld from notes order by 1")]

    def count(self, table: str) -> int:
        return self.col.db.scalar(f"select count() from {table}")

    def edit(self, front: str, new_front: str) -> Note:
        note = self.note(front)
        note.fields[0] = new_front
        self.col.update_note(note)
        return note

    def age(self, table: str, row: int, secs: int) -> None:
        """Makes a row's last change older (or, negative, newer): stamps have whole seconds, and tests do not wait for those."""
        stamp = {"notes": "mod", "cards": "mod"}.get(table, "mtime_secs")
        self.col.db.execute(f"update {table} set {stamp} = {stamp} - ? where id = ?", secs, row)
