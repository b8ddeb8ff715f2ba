//! Small file systems on loop devices, where this machine and this user can make them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A file system of its own, unmounted at the end.
pub(crate) struct Mount {
    dir: TempDir,
}

impl Mount {
    /// Makes one of this kind; says so if that cannot be done here. `force` is what makes `mkfs`
    /// take a file for a disk, `options` what is mounted with, each after a comma.
    pub(crate) fn new(kind: &str, mib: u64, force: &str, options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (image, mnt) = (dir.path().join("image"), dir.path().join("mnt"));
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&mnt).unwrap();
        let (image, mnt) = (image.to_str().unwrap(), mnt.to_str().unwrap());
        let made = run(&format!("mkfs.{kind}"), &["-q", force, image])
            && run("mount", &["-o", &format!("loop{options}"), image, mnt]);
        if !made {
            // Not a test of keepq: this machine cannot make such a file system.
            say(&format!("skipped: no {kind} on a loop device here"));
            return None;
        }
        Some(Self { dir })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["-l", self.path().to_str().unwrap()]);
    }
}

/// Fills the file system on which this file is made.
pub(crate) fn fill(path: &Path) {
    // Where the queue has taken all there was, there is no room for a file.
    let Ok(mut file) = fs::File::create(path) else { return };
    for chunk in [1 << 20, 1 << 16, 4096, 512] {
        let bytes = vec![1; chunk];
        while file.write_all(&bytes).is_ok() && file.sync_all().is_ok() {}
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// Says it past the capture of a test that passes.
pub(crate) fn say(what: &str) {
    std::io::stderr().write_all(format!("{what}\n").as_bytes()).unwrap();
}
