//! Replays the seeds of the fuzz targets, and every input that one of them ever failed on.
#![expect(clippy::unwrap_used, reason = "a test panics to fail")]

use std::{fs, path::Path};

#[path = "../fuzz/src/entries.rs"]
mod entries;

#[test]
fn seeds_and_crashes_pass() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, entry) in entries::ENTRIES {
        let mut seeds = 0;
        for inputs in ["seeds", "crashes"] {
            let Ok(directory) = fs::read_dir(fuzz.join(inputs).join(name)) else { continue };
            for file in directory {
                let file = file.unwrap().path();
                println!("{}", file.display());
                entry(&fs::read(&file).unwrap());
                seeds += usize::from(inputs == "seeds");
            }
        }
        assert!(seeds > 0, "{name} has no seeds");
    }
}
