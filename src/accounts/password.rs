//! Passwords and their hashes: PBKDF2-HMAC-SHA256 in the PHC form of the official server.

use std::time::{Duration, Instant};

use ctutils::CtEq;
use pbkdf2::password_hash::{PasswordHasher, PasswordVerifier};
use pbkdf2::phc::PasswordHash;
use pbkdf2::{Algorithm, Params, Pbkdf2, pbkdf2_hmac, pbkdf2_hmac_with_params};
use sha2::block_api::compress256;
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

/// Length of a SHA-256.
const HASH_BYTES: usize = 32;

/// The state of SHA-256 before the first block (FIPS 180-4).
const SHA256_START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

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
        PasswordHash::new(&self.0).is_ok_and(|hash| {
            fits_usual_form(&hash, password)
                .unwrap_or_else(|| Pbkdf2::default().verify_password(password.as_bytes(), &hash).is_ok())
        })
    }

    /// A short digest of the hash. It changes whenever a password is set.
    pub fn tag(&self) -> String {
        hex(&Sha256::digest(&self.0)[..8])
    }
}

/// Whether the password has this hash. None if the hash has another algorithm or length than those that servers make.
fn fits_usual_form(hash: &PasswordHash, password: &str) -> Option<bool> {
    let algorithm = Algorithm::new(hash.algorithm.as_str()).ok()?;
    let (params, salt) = (Params::try_from(hash).ok()?, hash.salt.as_ref()?);
    let expected: &[u8; HASH_BYTES] = hash.hash.as_ref()?.as_ref().try_into().ok()?;
    let is_usual =
        (algorithm, params.output_len(), hash.version) == (Algorithm::Pbkdf2Sha256, HASH_BYTES, None);
    is_usual.then(|| hash_once(password, salt.as_ref(), params).ct_eq(expected).to_bool())
}

/// PBKDF2-HMAC-SHA256 with an output of one hash, by the faster way.
fn hash_once(password: &str, salt: &[u8], params: Params) -> [u8; HASH_BYTES] {
    if cfg!(debug_assertions) {
        // Crates are optimised in every build, and this one is not.
        let mut hash = [0; HASH_BYTES];
        pbkdf2_hmac_with_params(password.as_bytes(), salt, Algorithm::Pbkdf2Sha256, params, &mut hash);
        return hash;
    }
    pbkdf2_sha256(password, salt, params.rounds())
}

/// PBKDF2-HMAC-SHA256 (RFC 8018) with an output of one hash. The loop of the crate takes a tenth longer: in a program that
/// is optimised for size, it XORs byte by byte, and copies the state of the hash for each round.
fn pbkdf2_sha256(password: &str, salt: &[u8], rounds: u32) -> [u8; HASH_BYTES] {
    let mut key = [0; 64];
    match password.as_bytes() {
        long if long.len() > key.len() => key[..HASH_BYTES].copy_from_slice(&Sha256::digest(long)),
        short => key[..short.len()].copy_from_slice(short),
    }
    let state_after = |pad: u8| {
        let mut state = SHA256_START;
        compress256(&mut state, &[key.map(|byte| byte ^ pad)]);
        state
    };
    let (inner, outer) = (state_after(0x36), state_after(0x5c));
    // The last block of each message: a hash, then the padding of SHA-256 with the length of key and hash in bits.
    let mut block = [[0; 64]];
    block[0][HASH_BYTES] = 0x80;
    block[0][62..].copy_from_slice(&(8 * (64 + HASH_BYTES as u16)).to_be_bytes());

    let mut hash = [0; HASH_BYTES];
    pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, 1, &mut hash);
    let mut last: [u32; 8] = std::array::from_fn(|n| {
        hash[4 * n..4 * n + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
    });
    let mut sum = last;
    for _ in 1..rounds {
        let mut state = inner;
        put_words(&last, &mut block[0]);
        compress256(&mut state, &block);
        last = outer;
        put_words(&state, &mut block[0]);
        compress256(&mut last, &block);
        for (sum, word) in sum.iter_mut().zip(last) {
            *sum ^= word;
        }
    }
    put_words(&sum, &mut hash);
    hash
}

fn put_words(words: &[u32; 8], to: &mut [u8]) {
    for (bytes, word) in to.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
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

/// Calls the function that a comparison calls, so that both take the same time.
fn hash_dummy(password: &str, rounds: u32) {
    let params = Params::new(rounds).expect("more rounds than the least that the crate takes");
    std::hint::black_box(hash_once(password, b"ankipi", params));
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
    fn our_loop_computes_what_the_crate_does() {
        for (length, rounds) in [(0, 1), (1, 2), (63, 3), (64, 1000), (65, 7), (300, 1000)] {
            let (password, salt) = ("p".repeat(length), vec![b's'; length]);
            let mut expected = [0; HASH_BYTES];
            pbkdf2_hmac::<Sha256>(password.as_bytes(), &salt, rounds, &mut expected);
            assert_eq!(pbkdf2_sha256(&password, &salt, rounds), expected, "{length} {rounds}");
        }
    }

    #[test]
    fn hashes_of_other_forms_fit_their_password_alone() {
        // python3 -c 'import hashlib; print(hashlib.pbkdf2_hmac("sha512", b"pw", b"saltsaltsaltsalt", 1000))', in base64, and
        // so on.
        for phc in [
            "$pbkdf2-sha512$i=1000,l=64$c2FsdHNhbHRzYWx0c2FsdA$\
             tUJFWCvfJ4jNCYwhW2Ca+K8/VFWdT6UZHto54Tz9ByFugaLo9uWDdINU/TrAoC3chl3BmndCwjvMlFvl6Jj5Bg",
            "$pbkdf2-sha256$i=1000,l=40$c2FsdHNhbHRzYWx0c2FsdA$T7epWfxBHiKQQGlNJ3+9CM17dQuKVeWu++anuIAf6vjtySxua2wd9w",
            "$pbkdf2-sha256$i=1000$c2FsdHNhbHRzYWx0c2FsdA$T7epWfxBHiKQQGlNJ3+9CM17dQuKVeWu++anuIAf6vg",
        ] {
            let hash = Hash::parse(phc).unwrap();
            assert!(hash.fits("pw") && !hash.fits("pw0"), "{phc}");
        }
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
