//! Random histories of accounts against a model that is too simple to be wrong: logins, revocations, accounts that
//! come, change and go, SIGHUP, damaged files and kills, many of them while a login is on its way, and all while
//! another user syncs. No key that was handed out is lost, and none works that was revoked or whose account is gone.
//!
//! ACCOUNT_STEPS sets the length of the histories (60 by default), SEED the random seed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ankipi::text::hex::hex;
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::accounts::{damage, rewrite_users};
use crate::client::{Device, Framed, Reply, Wire, pack, post, sync_header};
use crate::harness::{TestServer, add_user, ankipi, done, said};
use crate::races::Dice;

const META: &str = r#"{"v":11,"cv":"x"}"#;

/// Of 1000 rounds; the password is "secret".
const PHC: &str = "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";

/// The accounts of the accounts file.
const NAMES: [&str; 3] = ["anna", "bob", "c\u{e4}sar"];

/// The account of the config file.
const SETTING: &str = "test";

/// What was done to a file of an account, and the file as it was.
enum Damage {
    Keys(Vec<u8>),
    Line,
}

/// The expected state of a user.
#[derive(Default)]
struct Account {
    /// None: there is no account.
    password: Option<String>,
    /// Valid keys.
    keys: Vec<String>,
    damage: Option<Damage>,
}

/// What the config file says of its account.
#[derive(Clone, Copy, PartialEq)]
enum Setting {
    None,
    Plain,
    Hashed,
}

struct Model {
    server: Option<TestServer>,
    config: tempfile::TempDir,
    dice: Dice,
    accounts: BTreeMap<&'static str, Account>,
    setting: Setting,
    /// Keys of the account of the config file while its password is hashed.
    setting_keys: Vec<String>,
    /// The latest keys that must not work.
    bad: Vec<String>,
    passwords: u64,
    /// Each login comes from an address of its own, so that none is slowed down.
    addresses: u32,
    /// The server's address, for the user who syncs all the time.
    address: Arc<Mutex<SocketAddr>>,
    log: Vec<String>,
}

fn try_login(at: SocketAddr, from: u32, name: &str, password: &str) -> io::Result<Reply> {
    let body = pack(format!(r#"{{"u":"{name}","p":"{password}"}}"#).as_bytes());
    let headers = sync_header("", "")
        + &format!("X-Forwarded-For: {}\r\n", std::net::Ipv4Addr::from(0x0a00_0000 + from));
    let mut wire = Wire::try_open(at)?;
    wire.send(&post("/sync/hostKey", &headers, Framed::Length(&body)));
    wire.try_reply()
}

fn key_in(reply: &Reply) -> Option<String> {
    (reply.status == 200).then(|| reply.ok()["key"].as_str().unwrap().to_owned())
}

/// As `ankipi device list` shows it.
fn id(key: &str) -> String {
    hex(&Sha256::digest(key)[..4])
}

impl Model {
    fn start(seed: u64) -> Model {
        let config = tempfile::tempdir().unwrap();
        let base = Arc::new(tempfile::tempdir().unwrap());
        add_user(base.path(), "steady", "x");
        let path = config.path().join("conf");
        write_config(&path, Setting::Plain);
        let server = TestServer::with_config(base, &path);
        let address = Arc::new(Mutex::new(server.address));
        Model {
            server: Some(server),
            config,
            dice: Dice(seed),
            accounts: NAMES.iter().map(|name| (*name, Account::default())).collect(),
            setting: Setting::Plain,
            setting_keys: Vec::new(),
            bad: Vec::new(),
            passwords: 0,
            addresses: 0,
            address,
            log: Vec::new(),
        }
    }

    fn server(&self) -> &TestServer {
        self.server.as_ref().unwrap()
    }

    fn base(&self) -> &Path {
        self.server().base.path()
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.dice.below(one_in) == 0
    }

    fn any_name(&mut self) -> &'static str {
        NAMES[self.dice.below(NAMES.len() as u64) as usize]
    }

    fn new_password(&mut self) -> String {
        self.passwords += 1;
        format!("pw{}", self.passwords)
    }

    fn forget(&mut self, name: &str) {
        let keys = std::mem::take(&mut self.accounts.get_mut(name).unwrap().keys);
        self.bad.extend(keys);
    }

    fn say(&mut self, what: String) {
        self.log.push(what);
    }

    /// Adds the account, or changes it in one of the ways that are likely to find faults.
    fn change(&mut self, name: &'static str) {
        let base = self.base().to_owned();
        if self.accounts[name].password.is_none() {
            let password = self.new_password();
            self.say(format!("add {name}"));
            add_user(&base, name, &password);
            self.accounts.insert(name, Account { password: Some(password), ..Account::default() });
            return;
        }
        match self.dice.below(4) {
            0 => {
                self.say(format!("remove {name}"));
                done(&base, &["user", "remove", name], "");
                self.forget(name);
                self.accounts.insert(name, Account::default());
            }
            1 => {
                self.say(format!("delete {name}"));
                done(&base, &["user", "remove", name, "--delete-data", "--yes"], "");
                assert!(!base.join(name).exists(), "{}", self.story());
                self.forget(name);
                self.accounts.insert(name, Account::default());
            }
            2 => {
                let password = self.new_password();
                self.say(format!("passwd {name}"));
                done(&base, &["user", "passwd", name, "--rounds", "100000"], &password);
                self.forget(name);
                self.accounts.insert(name, Account { password: Some(password), ..Account::default() });
            }
            _ => {
                self.say(format!("revoke all of {name}"));
                done(&base, &["device", "revoke", name, "--all"], "");
                self.forget(name);
                let account = self.accounts.get_mut(name).unwrap();
                if let Some(Damage::Keys(_)) = account.damage {
                    account.damage = None;
                }
            }
        }
    }

    fn revoke_one(&mut self, name: &'static str) {
        let account = &self.accounts[name];
        if account.keys.is_empty() {
            return;
        }
        let damaged = matches!(account.damage, Some(Damage::Keys(_)));
        let at = self.dice.below(account.keys.len() as u64) as usize;
        let key = self.accounts[name].keys[at].clone();
        self.say(format!("revoke {} of {name}", id(&key)));
        let output = ankipi(self.base(), &[], &["device", "revoke", name, &id(&key)], "");
        // In a damaged file, keys can only be revoked all at once.
        assert_eq!(output.status.success(), !damaged, "{}\n{}", said(&output), self.story());
        if !damaged {
            let key = self.accounts.get_mut(name).unwrap().keys.remove(at);
            self.bad.push(key);
        }
    }

    fn hang_up(&mut self) {
        self.setting = [Setting::None, Setting::Plain, Setting::Hashed][self.dice.below(3) as usize];
        self.say(format!("hang up, {}", setting_line(self.setting)));
        write_config(&self.config.path().join("conf"), self.setting);
        self.server().hang_up("reloaded the log level");
    }

    fn kill(&mut self) {
        self.say("kill".to_owned());
        let server = self.server.take().unwrap().kill_and_restart();
        *self.address.lock().unwrap() = server.address;
        self.server = Some(server);
    }

    fn damage(&mut self, name: &'static str) {
        let (base, folder) = (self.base().to_owned(), self.base().join(name));
        let account = &self.accounts[name];
        if account.password.is_none() || account.damage.is_some() {
            return;
        }
        // Without a valid key the file belongs to an earlier password, and is ignored.
        if !account.keys.is_empty() && self.chance(2) {
            let size = fs::metadata(folder.join("keys")).unwrap().len();
            // Not a line end: that would damage two lines.
            let at = loop {
                let at = self.dice.below(size) as usize;
                if fs::read(folder.join("keys")).unwrap()[at] != b'\n' {
                    break at;
                }
            };
            self.say(format!("damage byte {at} of the keys of {name}"));
            let good = damage(&folder.join("keys"), at);
            self.accounts.get_mut(name).unwrap().damage = Some(Damage::Keys(good));
        } else {
            self.say(format!("damage the line of {name}"));
            rewrite_users(&base, |users| {
                users.replace(&format!("{name}:$pbkdf2-"), &format!("{name}:$pbkdf9-"))
            });
            self.accounts.get_mut(name).unwrap().damage = Some(Damage::Line);
        }
        // Whoever does it by hand makes the server read it, as it would at its next start.
        rewrite_users(&base, |users| users);
    }

    fn repair(&mut self, name: &'static str) {
        let base = self.base().to_owned();
        let Some(damage) = self.accounts.get_mut(name).unwrap().damage.take() else { return };
        self.say(format!("repair {name}"));
        match damage {
            Damage::Keys(good) => fs::write(base.join(name).join("keys"), good).unwrap(),
            Damage::Line => {
                rewrite_users(&base, |users| {
                    users.replace(&format!("{name}:$pbkdf9-"), &format!("{name}:$pbkdf2-"))
                });
            }
        }
        rewrite_users(&base, |users| users);
    }

    /// A login while nothing else changes.
    fn log_in(&mut self, name: &'static str) {
        self.addresses += 1;
        let (at, from) = (self.server().address, self.addresses);
        let account = &self.accounts[name];
        let right = account.password.clone();
        self.say(format!("log in {name}"));
        let reply = try_login(at, from, name, right.as_deref().unwrap_or("x")).unwrap();
        let expected = match (&right, &account_of(&self.accounts, name).damage) {
            (None, _) => 403,
            (Some(_), Some(_)) => 500,
            (Some(_), None) => 200,
        };
        assert_eq!(reply.status, expected, "{}", self.story());
        self.accounts.get_mut(name).unwrap().keys.extend(key_in(&reply));
        if self.chance(4) {
            self.addresses += 1;
            let wrong = try_login(at, self.addresses, name, "wrong").unwrap().status;
            let is_line = matches!(self.accounts[name].damage, Some(Damage::Line));
            assert_eq!(wrong, if is_line { 500 } else { 403 }, "{}", self.story());
        }
    }

    /// A login of the account of the config file.
    fn log_in_setting(&mut self) {
        let at = self.server().address;
        for (setting, password) in
            [(Setting::Plain, "plain"), (Setting::Hashed, "secret"), (Setting::None, PHC)]
        {
            self.addresses += 1;
            let reply = try_login(at, self.addresses, SETTING, password).unwrap();
            let expected = if setting == self.setting && setting != Setting::None { 200 } else { 403 };
            assert_eq!(reply.status, expected, "{password}: {}", self.story());
            if setting == Setting::Hashed {
                self.setting_keys.extend(key_in(&reply));
            }
        }
    }

    /// A login while something else happens.
    fn log_in_meanwhile(&mut self, name: &'static str) {
        let Account { password: Some(password), damage: None, .. } = &self.accounts[name] else { return };
        self.addresses += 1;
        let (at, from, password) = (self.server().address, self.addresses, password.clone());
        self.say(format!("begin to log in {name}"));
        let login = thread::spawn(move || try_login(at, from, name, &password));
        if self.chance(2) {
            self.server().wait_for_work(1);
        }
        let other = self.any_name();
        let what = self.dice.below(5);
        let before = self.log.len();
        match what {
            0 => self.kill(),
            1 => self.hang_up(),
            2 => self.revoke_one(other),
            3 => self.change(other),
            _ => self.change(name),
        }
        let is_own = what > 2 && (other == name || what > 3);
        let reply = login.join().unwrap();
        let status = reply.as_ref().map_or(0, |reply| reply.status);
        self.say(format!("it ends with {status}"));
        let key = reply.ok().and_then(|reply| key_in(&reply));
        let did = self.log[before..].concat();
        match (key, is_own) {
            (Some(key), false) => self.accounts.get_mut(name).unwrap().keys.push(key),
            // The login came before the revocation or after it.
            (Some(key), true) if did.contains("revoke all") => {
                let works = Device::new(self.server().address, &key).call("meta", META).status == 200;
                if works { self.accounts.get_mut(name).unwrap().keys.push(key) } else { self.bad.push(key) }
            }
            (Some(key), true) => self.bad.push(key),
            (None, true) => assert!([200, 403].contains(&status), "{status}: {}", self.story()),
            (None, false) => assert!(what == 0, "{status}: {}", self.story()),
        }
    }

    fn story(&self) -> String {
        self.log.join("\n")
    }

    /// Every key is as the model says.
    fn check(&mut self) {
        let at = self.server().address;
        let call = |key: &str| Device::new(at, key).call("meta", META).status;
        let mut is_closed = false;
        for (name, account) in &self.accounts {
            is_closed |= account.damage.is_some();
            for key in &account.keys {
                let status = call(key);
                let fits = match account.damage {
                    None => status == 200,
                    // Never 403: the device would forget its key.
                    Some(_) => [500, 503].contains(&status),
                };
                assert!(fits, "a good key of {name}, {}, gets {status}:\n{}", id(key), self.story());
            }
        }
        let plain = hex(&Sha1::digest(format!("{SETTING}:plain")));
        let hash = hex(&Sha1::digest(format!("{SETTING}:{PHC}")));
        let is_bad = |status| status == 403 || is_closed && [500, 503].contains(&status);
        for (key, setting) in
            self.setting_keys.iter().map(|key| (key, Setting::Hashed)).chain([(&plain, Setting::Plain)])
        {
            let status = call(key);
            // An account that went with its setting may come back: its devices stay logged in.
            let is_missing = self.setting == Setting::None && status == 503;
            let fits = if setting == self.setting { status == 200 } else { is_bad(status) || is_missing };
            assert!(fits, "{} of {SETTING} gets {status}:\n{}", id(key), self.story());
        }
        self.bad.drain(..self.bad.len().saturating_sub(20));
        for key in self.bad.iter().chain([&hash]) {
            let status = call(key);
            assert!(is_bad(status), "a bad key, {}, gets {status}:\n{}", id(key), self.story());
        }
    }

    fn check_status(&mut self) {
        let status = said(&ankipi(self.base(), &[], &["status"], ""));
        for (name, account) in &self.accounts {
            let part =
                status.split("\n\n").find(|part| part.lines().next() == Some(*name)).unwrap_or_default();
            let expected = account.damage.is_some();
            assert_eq!(part.contains("  closed: "), expected, "{name}: {status}\n{}", self.story());
        }
    }

    fn step(&mut self) {
        let name = self.any_name();
        match self.dice.below(16) {
            // A user needs an account first.
            _ if self.accounts[name].password.is_none() => self.change(name),
            0..3 => self.log_in(name),
            3..9 => self.log_in_meanwhile(name),
            9 => self.change(name),
            10 => self.revoke_one(name),
            11 => self.damage(name),
            12 => self.repair(name),
            13 => self.hang_up(),
            14 => self.log_in_setting(),
            _ => {
                if self.chance(2) {
                    self.kill();
                } else {
                    self.check_status();
                }
            }
        }
        // The most that an account may have is 200.
        if self.accounts[name].keys.len() > 100 {
            self.forget(name);
            done(self.base(), &["device", "revoke", name, "--all"], "");
        }
        self.check();
    }
}

fn account_of<'a>(accounts: &'a BTreeMap<&'static str, Account>, name: &str) -> &'a Account {
    &accounts[name]
}

fn setting_line(setting: Setting) -> String {
    match setting {
        Setting::None => String::new(),
        Setting::Plain => format!("SYNC_USER1={SETTING}:plain\n"),
        Setting::Hashed => format!("SYNC_USER1='{SETTING}:{PHC}'\nPASSWORDS_HASHED=1\n"),
    }
}

fn write_config(path: &Path, setting: Setting) {
    let text = format!("SYNC_IP_HEADER=RightmostXForwardedFor\n{}", setting_line(setting));
    fs::write(path, text).unwrap();
}

#[test]
fn no_key_is_lost_and_none_works_too_long() {
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (steps, seed) = (number("ACCOUNT_STEPS", 60), number("SEED", 1));
    let mut model = Model::start(seed);
    let steady = try_login(model.server().address, 0, "steady", "x").unwrap();
    let (key, address) = (key_in(&steady).unwrap(), model.address.clone());
    let (is_done, syncs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (ends, count) = (is_done.clone(), syncs.clone());
    // Reads the accounts again as soon as they change, and must never notice anything of all this.
    let steady = thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            let at = *address.lock().unwrap();
            // No answer: the server was just killed.
            if let Ok(reply) = Device::new(at, &key).try_call("/sync/meta", META.as_bytes()) {
                assert_eq!(reply.status, 200, "somebody else's sync");
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    for _ in 0..steps {
        model.step();
        assert!(!steady.is_finished(), "somebody else could not sync:\n{}", model.story());
    }
    is_done.store(true, Ordering::Relaxed);
    steady.join().unwrap();
    let logins = model.log.iter().filter(|line| line.contains("log in")).count();
    println!("{steps} steps, {logins} logins, {} syncs of somebody else", syncs.load(Ordering::Relaxed));
}
