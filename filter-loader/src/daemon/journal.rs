//! A file of lines that does not grow for ever: when it has reached its size it is set aside, and so many of
//! those that were set aside are kept.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file that lines are appended to.
pub struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    max_bytes: u64,
    keep: u32,
}

impl Journal {
    /// Opens the file, or makes it. `max_bytes`: when it is set aside, or 0 for never. `keep`: how many that were
    /// set aside are kept.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn open(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let file = appending(path)?;
        let there = file.metadata()?;
        // A terminal or a pipe stays what it is.
        let max_bytes = if there.is_file() { max_bytes } else { 0 };
        let size = there.len();
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), size, max_bytes, keep })
    }

    /// Appends one line, which is not split over two files.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.max_bytes != 0 && self.size != 0 && self.size + line.len() as u64 > self.max_bytes {
            self.set_aside()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    /// Makes what was written visible to readers.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn set_aside(&mut self) -> io::Result<()> {
        // Should anything here fail, the present file goes on, and the next attempt is as far away again.
        self.size = 0;
        self.file.flush()?;
        for number in (1..self.keep).rev() {
            rename(&self.aside(number), &self.aside(number + 1))?;
        }
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            fs::rename(&self.path, self.aside(1))?;
        }
        self.file = BufWriter::new(appending(&self.path)?);
        Ok(())
    }

    /// The file that was set aside so many times ago.
    fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn appending(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o640).open(path)
}

/// What is not there need not be renamed.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn named(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn full_files_are_set_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut journal = Journal::open(&path, 8, 2).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "much longer than a file\n", "7\n"] {
            journal.write(line.as_bytes()).unwrap();
        }
        journal.flush().unwrap();
        let expected = [("events", "7\n"), ("events.1", "much longer than a file\n"), ("events.2", "five\n")];
        assert_eq!(files(dir.path()), named(&expected));
    }

    #[test]
    fn a_file_that_is_there_goes_on_with_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        fs::write(&path, "before\n").unwrap();
        let mut journal = Journal::open(&path, 8, 1).unwrap();
        journal.write(b"after\n").unwrap();
        journal.flush().unwrap();
        assert_eq!(files(dir.path()), named(&[("events", "after\n"), ("events.1", "before\n")]));
    }

    #[test]
    fn without_a_size_it_grows_and_without_keeping_it_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut journal = Journal::open(&path, 0, 3).unwrap();
        for _ in 0..3 {
            journal.write(b"123456\n").unwrap();
        }
        drop(journal);
        assert_eq!(files(dir.path()), named(&[("events", "123456\n123456\n123456\n")]));
        let mut journal = Journal::open(&path, 8, 0).unwrap();
        journal.write(b"last\n").unwrap();
        journal.flush().unwrap();
        assert_eq!(files(dir.path()), named(&[("events", "last\n")]));
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let mut journal = Journal::open(Path::new("/dev/null"), 1, 1).unwrap();
        for _ in 0..3 {
            journal.write(b"line\n").unwrap();
        }
        journal.flush().unwrap();
        assert!(!Path::new("/dev/null.1").exists());
    }
}
