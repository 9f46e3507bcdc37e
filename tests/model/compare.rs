//! Compares what is seen through the mount with what is in the reference.

use crate::operation::Whence;
use crate::perform::{self, Facts, Outcome, Side};
use crate::run::{Checked, Run};
use crate::store::Store;
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

type Told<T> = Result<T, Errno>;

/// Whether it is a plain file that can be worked on.
pub fn is_plain(open: &OwnedFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(open).unwrap();
    perform::stat_of(open).is_ok_and(|facts| facts.kind == FileType::RegularFile)
        && !flags.contains(OFlags::PATH)
}

/// What stat tells on both sides.
pub fn facts(store: &Store<'_>, what: &str, got: Told<Facts>, want: Told<Facts>) -> Checked {
    let agree = match (&got, &want) {
        (Ok(got), Ok(want)) => store.comparable(got).agree(&store.comparable(want)),
        _ => got == want,
    };
    match agree {
        true => Ok(()),
        false => Err(format!("{what} is {got:?} and not {want:?}")),
    }
}

/// Bytes on both sides.
pub fn bytes(what: &str, got: &Told<Vec<u8>>, want: &Told<Vec<u8>>) -> Checked {
    if got == want {
        return Ok(());
    }
    let text = match (got, want) {
        (Ok(got), Ok(want)) => {
            let at = got.iter().zip(want).position(|(got, want)| got != want);
            let zeros = at.map(|at| got[at..].iter().take_while(|byte| **byte == 0).count());
            let (got, want) = (got.len(), want.len());
            format!("{got} bytes and not {want}, and differs at {at:?} ({zeros:?} zeros)")
        }
        (Err(errno), _) => format!("not readable: {errno:?}"),
        (Ok(got), Err(errno)) => format!("{} bytes and not {errno:?}", got.len()),
    };
    Err(format!("{what} has {text}"))
}

/// A name, and the listing of the directory that it is in.
pub fn name(run: &Run<'_>, path: &str) -> Checked {
    let got = run.settle(|| perform::stat(&run.mount.path(path)));
    let want = perform::stat(&run.reference.path(path));
    facts(run.store, path, got, want)?;
    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
    listing(run, above).map(drop)
}

fn listing(run: &Run<'_>, path: &str) -> Checked<Vec<String>> {
    let mut got = run.settle(|| perform::names(&run.mount.path(path)));
    if run.faulty {
        // A version whose commit lost its answer may be kept when it is replaced.
        got = got.map(|names| {
            let kept = |name: &String| !name.contains(".conflict-");
            names.into_iter().filter(kept).collect()
        });
    }
    let want = perform::names(&run.reference.path(path));
    if got != want {
        return Err(format!("{path:?} lists {got:?} and not {want:?}"));
    }
    let names = want.unwrap_or_default().into_iter();
    let inner = names.filter(|name| name != "." && name != "..");
    Ok(inner
        .map(|name| match path {
            "" => name,
            _ => format!("{path}/{name}"),
        })
        .collect())
}

/// Everything below the roots.
pub fn trees(run: &Run<'_>) -> Checked {
    let mut paths = vec![String::new()];
    while let Some(path) = paths.pop() {
        let want = perform::stat(&run.reference.path(&path)).unwrap();
        if !path.is_empty() {
            let got = run.settle(|| perform::stat(&run.mount.path(&path)));
            facts(run.store, &path, got, Ok(want))?;
        }
        let both = |ask: &dyn Fn(&Side) -> Told<Vec<u8>>| {
            bytes(&path, &run.settle(|| ask(&run.mount)), &ask(&run.reference))
        };
        match want.kind {
            FileType::Directory => paths.extend(listing(run, &path)?),
            FileType::RegularFile => both(&|side| perform::load(&side.path(&path)))?,
            FileType::Symlink => both(&|side| {
                let target = rustix::fs::readlink(side.path(&path), Vec::new())?;
                Ok(target.into_bytes())
            })?,
            _ => {}
        }
        if want.kind == FileType::Symlink {
            continue;
        }
        let got = run.settle(|| perform::attributes(&run.mount.path(&path)));
        let names = perform::attributes(&run.reference.path(&path));
        if got != names {
            return Err(format!("{path:?} has the xattrs {got:?} and not {names:?}"));
        }
        for name in names.unwrap_or_default() {
            both(&|side| perform::attribute(&side.path(&path), &name))?;
        }
    }
    Ok(())
}

/// What lseek may say of data and holes: no data lies in what is skipped, and a hole is zeros.
pub fn sparse(reference: &OwnedFd, whence: Whence, offset: u64, got: &Outcome) -> Checked {
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut perform::reopened(reference), &mut content).unwrap();
    let size = content.len() as u64;
    let zeros = |range: std::ops::Range<u64>| {
        content[range.start as usize..range.end as usize]
            .iter()
            .all(|byte| *byte == 0)
    };
    let right = match (whence, got) {
        (_, Outcome::Failed(Errno::NXIO)) if offset >= size => true,
        (Whence::Data, Outcome::Failed(Errno::NXIO)) => zeros(offset..size),
        (_, Outcome::Number(found)) if *found < offset || *found > size => false,
        (Whence::Data, Outcome::Number(found)) => *found < size && zeros(offset..*found),
        (_, Outcome::Number(found)) => *found == size || content[*found as usize] == 0,
        _ => false,
    };
    if let Outcome::Number(found) = got {
        rustix::fs::seek(reference, SeekFrom::Start(*found)).unwrap();
    }
    match right {
        true => Ok(()),
        false => Err(format!(
            "{whence:?} from {offset} of {size} bytes gave {got:?}"
        )),
    }
}
