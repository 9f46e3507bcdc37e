//! What programs do to files, one system call or a few at a time, and how it is drawn.

use fastrand::Rng;
use std::fs;
use std::path::Path;

/// How many files may be open at once.
pub const SLOTS: usize = 8;

/// One step. Names are paths below the root; a slot holds an open file or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[rustfmt::skip]
pub enum Operation {
    Open { slot: usize, path: String, flags: i32, mode: u32 },
    Close { slot: usize },
    Dup { from: usize, to: usize },
    ReadAt { slot: usize, offset: u64, length: usize },
    WriteAt { slot: usize, offset: u64, length: usize, seed: u32 },
    /// At the position of the handle, or at the end with `O_APPEND`.
    Read { slot: usize, length: usize },
    Write { slot: usize, length: usize, seed: u32 },
    Seek { slot: usize, offset: i64, whence: Whence },
    SetLength { slot: usize, length: u64 },
    Sync { slot: usize, data_only: bool },
    Allocate { slot: usize, how: Allocation, offset: u64, length: u64 },
    Copy { from: usize, from_offset: u64, to: usize, to_offset: u64, length: usize },
    /// Lets the kernel forget the clean pages.
    DropPages { slot: usize },
    Stat { path: String },
    List { path: String },
    /// The whole of a file.
    Load { path: String },
    Save { path: String, length: usize, seed: u32 },
    Truncate { path: String, length: u64 },
    /// A shared mapping in another process, which reads and then stores.
    Map { path: String, offset: u64, length: usize, seed: u32, sync: bool, close_first: bool },
    MakeDirectory { path: String, mode: u32 },
    RemoveDirectory { path: String },
    Unlink { path: String },
    Rename { from: String, to: String, how: Renaming },
    SymbolicLink { path: String, target: String },
    ReadLink { path: String },
    HardLink { from: String, to: String },
    MakeFifo { path: String },
    SetMode { path: String, mode: u32 },
    /// `None` is now.
    SetTime { path: String, seconds: Option<i64> },
    SetAttribute { path: String, name: &'static str, length: usize, seed: u32, flags: u32 },
    GetAttribute { path: String, name: &'static str },
    ListAttributes { path: String },
    RemoveAttribute { path: String, name: &'static str },
    /// Everything is closed, unmounted and mounted again.
    Remount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    Start,
    Current,
    End,
    Data,
    Hole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    Reserve,
    ReserveKeeping,
    Punch,
    Zero,
    ZeroKeeping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renaming {
    Replace,
    NoReplace,
    Exchange,
}

/// What may be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Every slot can be read from, links are not followed, and only files and empty directories
    /// are renamed: then what became of an operation that failed half-way can be looked up.
    pub traceable: bool,
    /// Names are changed. A rename by copying that failed leaves two files of which one is open.
    pub renames: bool,
    /// How many steps are between two remounts on average; `None` is never.
    pub remount: Option<usize>,
    /// How often a sync is drawn, in tenths of the usual.
    pub syncs: usize,
}

/// Names that are short, odd, or look like those of lock files.
const NAMES: &[&str] = &["a", "b", "c", "d", "e", "f.lock", "g h", "ü%~Z"];
const ATTRIBUTES: &[&str] = &["user.one", "user.two", "user.three"];

/// What there is below a root.
#[derive(Debug, Default)]
struct Tree {
    files: Vec<String>,
    directories: Vec<String>,
}

impl Tree {
    fn of(root: &Path) -> Tree {
        let mut tree = Tree::default();
        tree.directories.push(String::new());
        let mut next = 0;
        while next < tree.directories.len() {
            let above = tree.directories[next].clone();
            next += 1;
            let Ok(entries) = fs::read_dir(root.join(&above)) else {
                continue;
            };
            let mut entries: Vec<_> = entries.flatten().collect();
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = join(&above, entry.file_name().to_str().unwrap());
                match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    true => tree.directories.push(path),
                    false => tree.files.push(path),
                }
            }
        }
        tree
    }

    fn file(&self, rng: &mut Rng) -> String {
        match rng.choice(&self.files) {
            Some(path) if rng.u8(..) < 240 => path.clone(),
            _ => self.fresh(rng),
        }
    }

    fn directory(&self, rng: &mut Rng) -> String {
        let below = &self.directories[1..];
        match rng.choice(below) {
            Some(path) if rng.u8(..) < 225 => path.clone(),
            _ => self.fresh(rng),
        }
    }

    /// A name in a directory that is there, mostly; it may be taken.
    fn fresh(&self, rng: &mut Rng) -> String {
        let name = NAMES[rng.usize(..NAMES.len())];
        let below = match rng.u8(..100) {
            0..3 => self.file(rng),
            3..6 => "missing".into(),
            _ => rng.choice(&self.directories).unwrap().clone(),
        };
        match below.matches('/').count() {
            0..3 => join(&below, name),
            _ => name.into(),
        }
    }

    /// What is no root: the attributes of that are those of the mount.
    fn below(&self, rng: &mut Rng) -> String {
        Some(self.any(rng))
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| self.fresh(rng))
    }

    fn any(&self, rng: &mut Rng) -> String {
        match rng.u8(..10) {
            0..6 => self.file(rng),
            6..8 => self.directory(rng),
            8 => self.fresh(rng),
            _ => rng.choice(&self.directories).unwrap().clone(),
        }
    }
}

fn join(above: &str, name: &str) -> String {
    match above {
        "" => name.into(),
        _ => format!("{above}/{name}"),
    }
}

/// Mostly small, at times some blocks.
fn length(rng: &mut Rng) -> usize {
    match rng.u8(..100) {
        0..70 => rng.usize(..9_000),
        70..97 => rng.usize(..90_000),
        _ => rng.usize(..600_000),
    }
}

fn offset(rng: &mut Rng) -> u64 {
    let offset = match rng.u8(..100) {
        0..15 => 0,
        15..70 => rng.u64(..9_000),
        70..98 => rng.u64(..140_000),
        _ => rng.u64(..2_500_000),
    };
    // Pages and blocks have their edges.
    match rng.u8(..4) {
        0 => offset / 4096 * 4096,
        _ => offset,
    }
}

fn attribute(rng: &mut Rng) -> &'static str {
    ATTRIBUTES[rng.usize(..ATTRIBUTES.len())]
}

fn flags(rng: &mut Rng, style: Style) -> i32 {
    let mut flags = match rng.u8(..10) {
        _ if style.traceable => libc::O_RDWR,
        0..3 => libc::O_RDONLY,
        3..5 => libc::O_WRONLY,
        _ => libc::O_RDWR,
    };
    for (flag, percent) in [
        (libc::O_CREAT, 55),
        (libc::O_TRUNC, 15),
        (libc::O_APPEND, 20),
        (libc::O_EXCL, 10),
        (libc::O_DIRECTORY, 1),
        (libc::O_NOFOLLOW, 4),
        (libc::O_PATH, 1),
    ] {
        // An exclusive open makes a file; only a device could be meant otherwise.
        let alone = flag == libc::O_EXCL && flags & libc::O_CREAT == 0;
        if rng.u8(..100) < percent && !alone {
            flags |= flag;
        }
    }
    if style.traceable {
        flags |= libc::O_NOFOLLOW;
        flags &= !(libc::O_PATH | libc::O_DIRECTORY);
    }
    flags
}

/// Draws a step. `root` is where the tree lies that it is likely to fit, `open` are the slots that
/// hold files.
pub fn draw(rng: &mut Rng, root: &Path, open: &[usize], style: Style) -> Operation {
    use Operation as O;
    if let Some(every) = style.remount
        && rng.usize(..every) == 0
    {
        return O::Remount;
    }
    let tree = Tree::of(root);
    let crowded = tree.files.len() + tree.directories.len() > 40;
    let held = |rng: &mut Rng| match rng.choice(open) {
        Some(slot) if rng.u8(..20) > 0 => *slot,
        _ => rng.usize(..SLOTS),
    };
    let slot = held(rng);
    let seed = rng.u32(..);
    let mode = [0o644, 0o600, 0o755, 0o444, 0o666][rng.usize(..5)];
    let mapping = |rng: &mut Rng, path| O::Map {
        path,
        offset: offset(rng),
        length: length(rng),
        seed,
        sync: rng.bool(),
        close_first: rng.bool(),
    };
    match rng.u16(..1000) {
        0..110 => O::Open {
            slot: rng.usize(..SLOTS),
            path: match rng.bool() {
                true => tree.below(rng),
                false => tree.fresh(rng),
            },
            flags: flags(rng, style),
            mode,
        },
        110..170 => O::Close { slot },
        170..185 => O::Dup {
            from: slot,
            to: rng.usize(..SLOTS),
        },
        185..265 => O::ReadAt {
            slot,
            offset: offset(rng),
            length: length(rng),
        },
        265..375 => O::WriteAt {
            slot,
            offset: offset(rng),
            length: length(rng),
            seed,
        },
        375..395 => O::Read {
            slot,
            length: length(rng),
        },
        395..445 => O::Write {
            slot,
            length: length(rng),
            seed,
        },
        445..465 => O::Seek {
            slot,
            offset: offset(rng) as i64 - 1000,
            whence: [
                Whence::Start,
                Whence::Current,
                Whence::End,
                Whence::Data,
                Whence::Hole,
            ][rng.usize(..5)],
        },
        465..490 => O::SetLength {
            slot,
            length: offset(rng),
        },
        490..505 if rng.usize(..10) < style.syncs => O::Sync {
            slot,
            data_only: rng.bool(),
        },
        490..505 => O::DropPages { slot },
        505..530 => O::Allocate {
            slot,
            how: [
                Allocation::Reserve,
                Allocation::ReserveKeeping,
                Allocation::Punch,
                Allocation::Zero,
                Allocation::ZeroKeeping,
            ][rng.usize(..5)],
            offset: offset(rng),
            length: length(rng) as u64,
        },
        530..550 => {
            let whole = rng.bool();
            O::Copy {
                from: slot,
                from_offset: if whole { 0 } else { offset(rng) },
                to: held(rng),
                to_offset: if whole { 0 } else { offset(rng) },
                length: if whole { 4 << 20 } else { length(rng) },
            }
        }
        550..560 => O::DropPages { slot },
        560..590 => O::Stat {
            path: tree.any(rng),
        },
        590..610 => O::List {
            path: tree.directory(rng),
        },
        610..640 => O::Load {
            path: tree.file(rng),
        },
        640..670 => O::Save {
            path: match rng.bool() {
                true => tree.file(rng),
                false => tree.fresh(rng),
            },
            length: length(rng),
            seed,
        },
        670..685 => O::Truncate {
            path: tree.file(rng),
            length: offset(rng),
        },
        // A fault in a mapping would be a signal.
        685..700 if !style.traceable => {
            let path = tree.file(rng);
            mapping(rng, path)
        }
        685..740 if !crowded => O::MakeDirectory {
            path: tree.fresh(rng),
            mode: mode | 0o700,
        },
        685..760 => O::RemoveDirectory {
            path: tree.directory(rng),
        },
        760..800 => O::Unlink {
            path: tree.file(rng),
        },
        800..870 => {
            let exchanging = rng.u8(..10) == 0;
            let from = tree.below(rng);
            let to = match rng.bool() {
                true => tree.below(rng),
                false => tree.fresh(rng),
            };
            let how = match rng.u8(..4) {
                0 => Renaming::NoReplace,
                _ if exchanging && !style.traceable => Renaming::Exchange,
                _ => Renaming::Replace,
            };
            let untraceable = match fs::symlink_metadata(root.join(&from)) {
                Ok(metadata) if metadata.is_dir() => {
                    fs::read_dir(root.join(&from)).is_ok_and(|mut all| all.next().is_some())
                }
                Ok(metadata) => !metadata.is_file(),
                Err(_) => false,
            };
            match style.traceable && untraceable || !style.renames {
                true => O::List { path: from },
                false => O::Rename { from, to, how },
            }
        }
        870..885 => O::SymbolicLink {
            path: tree.fresh(rng),
            target: match rng.u8(..3) {
                0 => "nowhere".into(),
                1 => NAMES[rng.usize(..NAMES.len())].into(),
                // Never upwards: what is above the roots differs.
                _ => {
                    let name = |rng: &mut Rng| NAMES[rng.usize(..NAMES.len())];
                    format!("{}/{}", name(rng), name(rng))
                }
            },
        },
        885..895 => O::ReadLink {
            path: tree.file(rng),
        },
        895..898 => O::HardLink {
            from: tree.file(rng),
            to: tree.fresh(rng),
        },
        898..902 => O::MakeFifo {
            path: tree.fresh(rng),
        },
        902..922 => O::SetMode {
            path: tree.below(rng),
            mode: mode | 0o700,
        },
        922..945 => O::SetTime {
            path: tree.below(rng),
            seconds: rng.bool().then(|| rng.i64(1..1_500_000_000)),
        },
        945..965 => O::SetAttribute {
            path: tree.below(rng),
            name: attribute(rng),
            length: rng.usize(..200),
            seed,
            flags: rng.u32(..3),
        },
        965..978 => O::GetAttribute {
            path: tree.below(rng),
            name: attribute(rng),
        },
        978..988 => O::ListAttributes {
            path: tree.below(rng),
        },
        _ => O::RemoveAttribute {
            path: tree.below(rng),
            name: attribute(rng),
        },
    }
}

impl Operation {
    /// The slots that it needs to hold open files; the second one of a copy is its destination.
    pub fn slots(&self) -> [Option<usize>; 2] {
        use Operation as O;
        match self {
            O::ReadAt { slot, .. }
            | O::WriteAt { slot, .. }
            | O::Read { slot, .. }
            | O::Write { slot, .. }
            | O::Seek { slot, .. }
            | O::SetLength { slot, .. }
            | O::Sync { slot, .. }
            | O::Allocate { slot, .. }
            | O::DropPages { slot } => [Some(*slot), None],
            O::Copy { from, to, .. } => [Some(*from), Some(*to)],
            _ => [None, None],
        }
    }

    /// The slots that may be other than before.
    pub fn touched(&self) -> [Option<usize>; 2] {
        use Operation as O;
        match self {
            O::Open { slot, .. } | O::Close { slot } => [Some(*slot), None],
            O::Dup { to, .. } => [Some(*to), None],
            _ => self.slots(),
        }
    }

    /// Whether it makes what has no place for a commit id, and is not known again when an answer
    /// was lost: a link or a fifo.
    pub fn anonymous(&self) -> bool {
        matches!(
            self,
            Operation::SymbolicLink { .. } | Operation::MakeFifo { .. }
        )
    }

    /// The names that it works on.
    pub fn paths(&self) -> [Option<&str>; 2] {
        use Operation as O;
        match self {
            O::Open { path, .. }
            | O::Stat { path }
            | O::List { path }
            | O::Load { path }
            | O::Save { path, .. }
            | O::Truncate { path, .. }
            | O::Map { path, .. }
            | O::MakeDirectory { path, .. }
            | O::RemoveDirectory { path }
            | O::Unlink { path }
            | O::SymbolicLink { path, .. }
            | O::ReadLink { path }
            | O::MakeFifo { path }
            | O::SetMode { path, .. }
            | O::SetTime { path, .. }
            | O::SetAttribute { path, .. }
            | O::GetAttribute { path, .. }
            | O::ListAttributes { path }
            | O::RemoveAttribute { path, .. } => [Some(path), None],
            O::Rename { from, to, .. } | O::HardLink { from, to } => [Some(from), Some(to)],
            _ => [None, None],
        }
    }
}
