//! Replays all inputs that fuzzing has found worth keeping (tests/fuzz).

use std::fs;
use std::path::Path;

#[path = "fuzz/checks.rs"]
mod checks;

#[test]
fn what_fuzzing_found_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (target, check) in checks::ALL {
        let (mut inputs, started) = (0, std::time::Instant::now());
        for entry in fs::read_dir(corpus.join(target)).unwrap() {
            let path = entry.unwrap().path();
            // The test harness shows it if the check fails.
            println!("{}", path.display());
            check(&fs::read(path).unwrap());
            inputs += 1;
        }
        println!("{target}: {inputs} inputs in {:?}", started.elapsed());
        assert!(inputs > 5, "{target}: {inputs} inputs");
    }
}
