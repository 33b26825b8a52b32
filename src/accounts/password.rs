//! Passwords and their hashes: PBKDF2-HMAC-SHA256 in the PHC form of the official server.

use std::time::{Duration, Instant};

use ctutils::CtEq;
use pbkdf2::password_hash::{PasswordHasher, PasswordVerifier};
use pbkdf2::phc::PasswordHash;
use pbkdf2::{Algorithm, Params, Pbkdf2, pbkdf2_hmac_with_params};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::os;
use crate::text::hex::hex;

/// The iterations that the official server uses.
pub const DEFAULT_ROUNDS: u32 = 600_000;

/// Minimum iterations. With fewer, stolen hashes are guessed too fast.
pub const MIN_ROUNDS: u32 = 100_000;

/// CPU time that a login may take.
const LOGIN_CPU_TIME: Duration = Duration::from_secs(1);

/// Prefix of hashes imported from ankisyncd.
const ANKISYNCD: &str = "$ankisyncd$";

/// A checked hash: a PHC string, or one imported from ankisyncd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash(String);

impl Hash {
    /// Parses a PHC string. An error if passwords cannot be compared with it.
    pub fn parse(phc: &str) -> std::result::Result<Hash, String> {
        let hash =
            PasswordHash::new(phc).map_err(|err| format!("not a PHC string ($pbkdf2-sha256$...): {err}"))?;
        if Algorithm::new(hash.algorithm.as_str()).is_err() {
            return Err(format!("{} is not pbkdf2-sha256", hash.algorithm));
        }
        match (&hash.salt, &hash.hash) {
            (Some(_), Some(_)) => Ok(Hash(phc.to_owned())),
            _ => Err("a PHC string without salt or hash".to_owned()),
        }
    }

    /// Imports the hash that ankisyncd and anki-sync-server-rs store: SHA-256 of name, password and salt, then the
    /// salt, all in hexadecimal digits. None if the text is something else.
    pub fn of_ankisyncd(name: &str, stored: &str) -> Option<Hash> {
        let is_hex = stored.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (stored.len() == 80 && is_hex).then(|| Hash(format!("{ANKISYNCD}{}${stored}", hex(name.as_bytes()))))
    }

    /// Parses a hash of the accounts file: a PHC string, or one imported from another server.
    pub fn parse_stored(text: &str) -> std::result::Result<Hash, String> {
        match text.strip_prefix(ANKISYNCD) {
            Some(_) => Ok(Hash(text.to_owned())),
            None => Hash::parse(text),
        }
    }

    /// Whether the hash is fast to guess. If so, the first login replaces it.
    pub fn is_weak(&self) -> bool {
        self.0.starts_with(ANKISYNCD)
    }

    /// Hashes a password with a random salt. This takes seconds on a small board.
    pub fn of(password: &str, rounds: u32) -> Result<Hash> {
        let mut salt = [0u8; 16];
        os::random(&mut salt).map_err(|err| Error::Broken(format!("no random bytes: {err}")))?;
        let hasher = Params::new(rounds).map(|params| Pbkdf2::new(Algorithm::Pbkdf2Sha256, params));
        let hash = hasher.and_then(|hasher| hasher.hash_password_with_salt(password.as_bytes(), &salt));
        let hash: PasswordHash = hash.map_err(|err| Error::Broken(format!("hashing a password: {err}")))?;
        Ok(Hash(hash.to_string()))
    }

    /// The PHC string.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the password has this hash.
    pub fn fits(&self, password: &str) -> bool {
        if let Some(rest) = self.0.strip_prefix(ANKISYNCD) {
            spend_login_time(password);
            return fits_ankisyncd(rest, password).unwrap_or(false);
        }
        PasswordHash::new(&self.0)
            .is_ok_and(|hash| Pbkdf2::default().verify_password(password.as_bytes(), &hash).is_ok())
    }

    /// A short digest of the hash. It changes whenever a password is set.
    pub fn tag(&self) -> String {
        hex(&Sha256::digest(&self.0)[..8])
    }
}

/// `rest` is `hex of the name$digest and salt`.
fn fits_ankisyncd(rest: &str, password: &str) -> Option<bool> {
    let (name, stored) = rest.split_once('$')?;
    let (digest, salt) = stored.split_at_checked(64)?;
    let name: Option<Vec<u8>> =
        (0..name.len() / 2).map(|at| u8::from_str_radix(name.get(2 * at..2 * at + 2)?, 16).ok()).collect();
    let text = [&name?, password.as_bytes(), salt.as_bytes()].concat();
    Some(hex(&Sha256::digest(text)).as_bytes().ct_eq(digest.as_bytes()).to_bool())
}

/// Compares two passwords in a time that does not depend on how far they agree.
pub fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a).ct_eq(&Sha256::digest(b)).to_bool()
}

/// Takes as long as a comparison with a hash. Plain passwords are not hashed, as everyone on the board can read them in
/// the environment. A login must still take that time: it slows guessing, and it must not reveal whether an account
/// exists.
pub fn spend_login_time(password: &str) {
    hash_dummy(password, DEFAULT_ROUNDS);
}

/// Calls the function that a comparison calls, so that both take the same time. The function is not generic, so it is
/// compiled with the optimisation of its crate. With the optimisation of this crate it would take an eighth longer.
fn hash_dummy(password: &str, rounds: u32) {
    let params = Params::new(rounds).expect("more rounds than the least that the crate takes");
    let mut hash = [0; 32];
    pbkdf2_hmac_with_params(password.as_bytes(), b"ankipi", Algorithm::Pbkdf2Sha256, params, &mut hash);
    std::hint::black_box(hash);
}

/// Iterations that this machine does in about a second, in steps of 10 000; at least `MIN_ROUNDS`.
pub fn calibrate() -> u32 {
    const SAMPLE_ROUNDS: u32 = 50_000;
    // The fastest of three: other load only slows a sample down.
    let took = (0..3).map(|_| {
        let started = Instant::now();
        hash_dummy("calibration", SAMPLE_ROUNDS);
        started.elapsed()
    });
    let secs = took.min().unwrap_or(LOGIN_CPU_TIME).as_secs_f64().max(1e-6);
    let rounds = f64::from(SAMPLE_ROUNDS) * LOGIN_CPU_TIME.as_secs_f64() / secs;
    // The cast saturates on a machine that is too fast.
    (rounds as u32 / 10_000 * 10_000).max(MIN_ROUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_fits_its_password_alone_and_is_one_that_the_official_server_takes() {
        let hash = Hash::of("p\u{e4}ss word", 1000).unwrap();
        assert!(hash.as_str().starts_with("$pbkdf2-sha256$i=1000,l=32$"), "{}", hash.as_str());
        assert_eq!(Hash::parse(hash.as_str()).unwrap(), hash);
        assert!(hash.fits("p\u{e4}ss word") && !hash.fits("pass word") && !hash.fits(""));
        assert_ne!(hash, Hash::of("p\u{e4}ss word", 1000).unwrap(), "the same salt twice");
    }

    #[test]
    fn hashes_of_ankisyncd_fit_their_password_alone() {
        // What its ankisyncctl stores: python3 -c 'import hashlib; print(hashlib.sha256("b\xf6bpw0123456789abcdef".encode())...)
        let stored = format!("{}0123456789abcdef", hex(&Sha256::digest("b\u{f6}bpw0123456789abcdef")));
        let hash = Hash::of_ankisyncd("b\u{f6}b", &stored).unwrap();
        assert!(hash.is_weak() && hash.fits("pw") && !hash.fits("pw0") && !hash.fits(""));
        assert_eq!(Hash::parse_stored(hash.as_str()).unwrap(), hash);
        assert!(Hash::parse(hash.as_str()).is_err(), "not for PASSWORDS_HASHED");
        for text in ["", "abc", &stored[1..], &stored.to_uppercase()] {
            assert_eq!(Hash::of_ankisyncd("b", text), None, "{text}");
        }
        for text in ["$ankisyncd$", "$ankisyncd$x", "$ankisyncd$zz$00", "$ankisyncd$\u{e9}\u{e9}$\u{e9}"] {
            assert!(!Hash::parse_stored(text).unwrap().fits("pw"), "{text}");
        }
    }

    #[test]
    fn other_hashes_are_refused() {
        for text in
            ["", "secret", "$pbkdf2-sha256$i=1000,l=32", "$argon2id$v=19$m=1,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"]
        {
            assert!(Hash::parse(text).is_err(), "{text}");
        }
    }
}
