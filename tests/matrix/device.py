"""One device: a real Anki client of any release from 2.1.25 on, driven by lines of JSON on its standard input.

Runs under the Python of its release (3.7 to 3.11) with nothing but `anki` beside it. A line {"do": name, "with": [..]} is
answered by {"gave": value} or {"failed": text}. What the releases do differently is asked of the release itself where it
can be; the clients written in Python (to 2.1.26), whose syncing is another, have a class of their own.

    python device.py FOLDER BASE_URL USER PASSWORD
"""

import inspect
import itertools
import json
import os
import sys
import time

FOLDER, URL, USER, PASSWORD = sys.argv[1:5]

# Clients from 2.1.28 to 2.1.56 read these when they are loaded.
os.environ["SYNC_ENDPOINT"] = URL + "sync/"
os.environ["SYNC_ENDPOINT_MEDIA"] = URL + "msync/"

import anki.buildinfo  # noqa: E402

try:
    import anki.sync as python_sync

    python_sync.SYNC_BASE = URL + "%s"
except ImportError:
    python_sync = None
if hasattr(python_sync, "RemoteServer"):
    from anki.storage import Collection
else:
    python_sync = None
    from anki.collection import Collection

# The results of sync_collection in clients whose sync is written in Rust.
REQUIRED = ["nothing", "nothing", "full sync", "download", "upload"]


def first(owner, *names):
    """The method that this release has of those that do the same."""
    for name in names:
        if hasattr(owner, name):
            return getattr(owner, name)
    raise AttributeError("%s has none of %s" % (owner, ", ".join(names)))


def outlive(stamp):
    """Waits until what was changed at that second can be changed visibly: of two edits in one second, devices may each
    keep another."""
    while time.time() < stamp + 1:
        time.sleep(0.01)


class Device:
    """Clients from 2.1.28 on, which sync in Rust."""

    def __init__(self):
        self.path = os.path.join(FOLDER, "collection.anki2")
        self.open()
        self.auth = None

    def open(self):
        self.col = Collection(self.path)

    # syncing

    def log_in(self, password=PASSWORD):
        if hasattr(self.col, "sync_login"):
            takes_url = "endpoint" in inspect.signature(self.col.sync_login).parameters
            self.auth = self.col.sync_login(USER, password, *([URL] if takes_url else []))
            if takes_url:
                self.auth.endpoint = URL
        else:
            self.auth = self.col.backend.sync_login(username=USER, password=password)

    def is_refused(self, password):
        """Whether the server refuses this password as wrong, and not for another reason."""
        try:
            self.log_in(password)
        except Exception as err:
            told = "%s %s" % (getattr(err, "kind", ""), err)
            if any(word in told.lower() for word in ("auth", "incorrect", "wrong name or password")):
                return True
            raise
        return False

    def sync(self):
        """One press on the sync button. Returns which full sync is needed, if one is."""
        if hasattr(self.col, "save") and "trx" in inspect.signature(self.col.save).parameters:
            # Python holds a transaction open.
            self.col.save(trx=False)
            try:
                out = self.sync_collection()
            finally:
                self.col.db.begin()
                self.forget_objects()
        else:
            out = self.sync_collection()
            self.forget_objects()
        if out.server_message:
            raise Exception("the server says: " + out.server_message)
        return REQUIRED[out.required]

    def sync_collection(self):
        sync = first(self.col if hasattr(self.col, "sync_collection") else self.col.backend, "sync_collection")
        takes_media = "sync_media" in inspect.signature(sync).parameters
        return sync(self.auth, False) if takes_media else sync(self.auth)

    def forget_objects(self):
        """Python caches notetypes beyond a sync; the window of Anki resets that cache."""
        if hasattr(self.col.models, "_clear_cache"):
            self.col.models._clear_cache()

    def upload(self):
        self.full_sync(True)

    def download(self):
        self.full_sync(False)

    def full_sync(self, upload):
        self.col.close_for_full_sync()
        try:
            if hasattr(self.col, "full_upload_or_download"):
                self.col.full_upload_or_download(auth=self.auth, server_usn=None, upload=upload)
            else:
                owner = self.col if hasattr(self.col, "full_upload") else self.col.backend
                (owner.full_upload if upload else owner.full_download)(self.auth)
        finally:
            self.col.reopen(after_full_sync=True)
            self.forget_objects()

    def sync_media(self):
        owner = self.col if hasattr(self.col, "sync_media") else self.col.backend
        owner.sync_media(self.auth)
        if hasattr(self.col, "media_sync_status"):
            while self.col.media_sync_status().active:
                time.sleep(0.02)

    # working

    def add_note(self, front, back="", deck="Default", tags=""):
        model = first(self.col.models, "by_name", "byName")("Basic")
        did = self.col.decks.id(deck)
        if hasattr(self.col, "new_note"):
            note = self.col.new_note(model)
        else:
            first(self.col.models, "setCurrent", "set_current")(model)
            model["did"] = did
            note = self.col.newNote()
        note.fields[0], note.fields[1] = front, back
        first(note, "set_tags_from_str", "setTagsFromStr")(tags)
        if hasattr(self.col, "add_note"):
            self.col.add_note(note, did)
        else:
            self.col.addNote(note)
        # Ids are milliseconds: two devices must not make something in the same one.
        time.sleep(0.003)
        return note.id

    def note_id(self, front):
        (nid,) = self.col.db.list("select id from notes where sfld = ?", front)
        return nid

    def edit_note(self, front, new_front, tags=""):
        note = first(self.col, "get_note", "getNote")(self.note_id(front))
        outlive(note.mod)
        note.fields[0] = new_front
        first(note, "set_tags_from_str", "setTagsFromStr")(tags)
        if hasattr(self.col, "update_note"):
            self.col.update_note(note)
        else:
            note.flush()

    def remove_note(self, front):
        first(self.col, "remove_notes", "remNotes")([self.note_id(front)])

    def add_deck(self, name, description):
        did = self.col.decks.id(name)
        deck = self.col.decks.get(did)
        deck["desc"] = description
        self.col.decks.save(deck)
        time.sleep(0.003)

    def remove_deck(self, name):
        did = self.col.decks.id(name)
        if hasattr(self.col.decks, "remove"):
            self.col.decks.remove([did])
        else:
            self.col.decks.rem(did, cardsToo=True)

    def set_new_per_day(self, count):
        options = first(self.col.decks, "config_dict_for_deck_id", "confForDid")(1)
        outlive(options["mod"])
        options["new"]["perDay"] = count
        first(self.col.decks, "update_config", "save")(options)

    def set_css(self, css):
        model = first(self.col.models, "by_name", "byName")("Basic")
        outlive(model["mod"])
        model["css"] = css
        first(self.col.models, "update_dict", "save")(model)

    def add_field(self, name):
        """Changes the schema, so that a full sync is needed."""
        models = self.col.models
        model = first(models, "by_name", "byName")("Basic")
        field = first(models, "new_field", "newField")(name)
        first(self.col, "mod_schema", "modSchema")(False)
        first(models, "add_field", "addField")(model, field)
        if hasattr(models, "update_dict"):
            models.update_dict(model)
        elif hasattr(models, "save"):
            models.save(model)

    def force_full_sync(self):
        first(self.col, "mod_schema", "modSchema")(False)

    def review(self, count, deck="Default"):
        self.col.decks.select(self.col.decks.id(deck))
        for _ in range(count):
            self.col.sched.reset() if hasattr(self.col.sched, "reset") else None
            card = self.col.sched.getCard()
            if card is None:
                raise Exception("nothing to review")
            # Its two stamps must be of the same second for the newest client's check: tests/real/device.py.
            while time.time() % 1 > 0.8:
                time.sleep(0.01)
            self.col.sched.answerCard(card, 2)
            time.sleep(0.003)

    # media

    def put_media(self, name, text, ahead=itertools.count(2, 2)):
        """The client looks for changes by the times of folder and files, in whole seconds."""
        path = os.path.join(self.media_folder(), name)
        with open(path, "wb") as file:
            file.write(text.encode())
        later = time.time() + next(ahead)
        os.utime(path, (later, later))
        os.utime(self.media_folder(), (later, later))

    def remove_media(self, name, ahead=itertools.count(1001, 2)):
        os.unlink(os.path.join(self.media_folder(), name))
        later = time.time() + next(ahead)
        os.utime(self.media_folder(), (later, later))

    def media(self):
        folder = self.media_folder()
        held = {}
        for name in os.listdir(folder):
            if os.path.isfile(os.path.join(folder, name)) and not name.startswith("_missing"):
                with open(os.path.join(folder, name), "rb") as file:
                    held[name] = file.read().decode("latin-1")
        return held

    def media_folder(self):
        return self.col.media.dir()

    # looking

    def rows(self):
        """Everything that devices share, in a form that all releases can tell. Left out: usns, and what tells when this
        very device did something last."""
        decks = self.col.decks
        every_deck = [deck for deck in decks.all()]
        options = first(decks, "all_config", "allConf")()
        return {
            # Tags as words: 2.1.25 writes two blanks where others write one.
            "notes": [
                [*row[:4], row[4].split(), *row[5:]]
                for row in self.col.db.all("select id, guid, mid, mod, tags, flds, sfld, csum from notes order by id")
            ],
            "cards": self.col.db.all(
                "select id, nid, did, ord, mod, type, queue, due, ivl, factor, reps, lapses, left, odue, odid, flags"
                " from cards order by id"
            ),
            "revlog": self.col.db.all("select id, cid, ease, ivl, lastIvl, factor, time, type from revlog order by id"),
            "decks": sorted([d["id"], d["name"], d.get("desc"), d.get("conf"), d["dyn"]] for d in every_deck),
            "options": sorted([o["id"], o["name"], o["new"]["perDay"], o["rev"]["perDay"], o["maxTaken"]] for o in options),
            "notetypes": sorted(
                [
                    int(m["id"]),
                    m["name"],
                    m["css"],
                    [field["name"] for field in m["flds"]],
                    [[t["name"], t["qfmt"], t["afmt"]] for t in m["tmpls"]],
                ]
                for m in self.col.models.all()
            ),
            "tags": sorted(tag.lower() for tag in self.col.tags.all()),
        }

    def check(self):
        """What the client's own database check finds, in lines."""
        report, sound = first(self.col, "fix_integrity", "fixIntegrity")()
        # The last one tells that the check is done.
        return [] if sound else report.splitlines()[:-1] or [report]

    def schema_version(self):
        return self.col.db.scalar("select ver from col")


class PythonDevice(Device):
    """2.1.25 and 2.1.26: the collection is synced by Python, media by Rust."""

    def server(self, kind=None):
        return (kind or python_sync.RemoteServer)(self.auth, hostNum=None)

    def log_in(self, password=PASSWORD):
        self.auth = python_sync.RemoteServer(None, hostNum=None).hostKey(USER, password)
        if not self.auth:
            raise Exception("wrong name or password")

    def sync(self):
        self.col.save()
        told = python_sync.Syncer(self.col, self.server()).sync()
        known = {"noChanges": "nothing", "success": "nothing", "fullSync": "full sync"}
        if told not in known:
            raise Exception("sync ended with %s" % told)
        return known[told]

    def full_sync(self, upload):
        syncer = python_sync.FullSyncer(self.col, self.auth, None, hostNum=None)
        told = syncer.upload() if upload else syncer.download()
        if told not in (None, True, "success"):
            raise Exception("full sync ended with %s" % told)
        self.open()

    def sync_media(self):
        self.col.save()
        self.col.backend.sync_media(self.auth, URL + "msync/")

    def add_note(self, front, back="", deck="Default", tags=""):
        nid = Device.add_note(self, front, back, deck, tags)
        self.col.save()
        return nid


def main():
    os.makedirs(FOLDER, exist_ok=True)
    # Output of the client itself must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    device = PythonDevice() if python_sync else Device()
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            answer = {"gave": getattr(device, wanted["do"])(*wanted["with"])}
        except BaseException as err:
            answer = {"failed": "%s: %s" % (type(err).__name__, err)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


main()
