//! Bytes of one store on their way into another one.

use crate::driver::{
    Body, Driver, Error, ErrorKind, GetOptions, Object, ObjectInfo, PutOptions, Result, Source,
    Upload,
};
use crate::key::Key;
use crate::task;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

/// Objects up to this size are put by one request, from memory; larger ones in parts of it.
const PIECE: usize = 8 << 20;

/// Copies one version of an object, with the attributes of `options`, in bounded memory. Gives the
/// copy's facts. A version that has gone meanwhile is [`ErrorKind::Changed`] or `NotFound`.
pub(in crate::driver) async fn transfer(
    from: &dyn Driver,
    key: &Key,
    info: &ObjectInfo,
    to: &dyn Driver,
    options: PutOptions,
) -> Result<ObjectInfo> {
    let version = GetOptions {
        if_match: Some(info.etag.clone()),
        ..GetOptions::default()
    };
    let mut pieces = Pieces::of(from.get(key, version).await?.found()?);
    let first = pieces.next(PIECE).await?;
    if pieces.left == 0 {
        return to.put(key, first.into(), options).await;
    }
    match to.capabilities().upload {
        Some(limits) => {
            let total = first.len() as u64 + pieces.left;
            let least = total.div_ceil(u64::from(limits.max_parts));
            let size = least.max(limits.min_part).max(PIECE as u64);
            let precondition = options.precondition.clone();
            let upload = to.upload(key, options).await?;
            let sent = send(&*upload, first, pieces, size.min(limits.max_part) as usize).await;
            match sent {
                Ok(()) => upload.complete(precondition).await,
                Err(error) => {
                    if let Err(error) = upload.abort().await {
                        log::debug!("parts of a copy stay behind: {error}");
                    }
                    Err(error)
                }
            }
        }
        None => {
            let spilled = spill(first, pieces).await?;
            to.put(key, Body::Source(Arc::new(spilled)), options).await
        }
    }
}

async fn send(upload: &dyn Upload, first: Bytes, mut pieces: Pieces, size: usize) -> Result<()> {
    let mut part = BytesMut::from(&first[..]);
    let mut number = 1;
    loop {
        let more = pieces.next(size - part.len()).await?;
        part.extend_from_slice(&more);
        upload.part(number, part.split().freeze().into()).await?;
        if pieces.left == 0 {
            return Ok(());
        }
        number += 1;
    }
}

/// The body of a get, cut anew.
struct Pieces {
    object: Object,
    held: Bytes,
    /// How many bytes are to come, with those that are held.
    left: u64,
}

impl Pieces {
    fn of(object: Object) -> Pieces {
        Pieces {
            left: object.range.end - object.range.start,
            object,
            held: Bytes::new(),
        }
    }

    /// So many bytes; fewer only at the end.
    async fn next(&mut self, most: usize) -> Result<Bytes> {
        let want = (self.left.min(most as u64)) as usize;
        let mut piece = BytesMut::with_capacity(want);
        while piece.len() < want {
            if self.held.is_empty() {
                self.held = match self.object.body.next().await {
                    Some(bytes) => bytes?,
                    None => {
                        let why = "the body ended before its length";
                        return Err(Error::new(ErrorKind::Corrupt, why).during("get"));
                    }
                };
            }
            let cut = self.held.len().min(want - piece.len());
            piece.extend_from_slice(&self.held.split_to(cut));
        }
        self.left -= want as u64;
        Ok(piece.freeze())
    }
}

/// Bytes in a file without a name.
struct Spilled {
    file: File,
    len: u64,
}

impl Source for Spilled {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }
}

async fn spill(first: Bytes, mut pieces: Pieces) -> Result<Spilled> {
    let len = first.len() as u64 + pieces.left;
    let mut file = File::options()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(std::env::temp_dir())?;
    let mut piece = first;
    loop {
        let written = task::blocking(move || file.write_all(&piece).map(|()| file));
        file = written
            .await
            .map_err(|cause| Error::new(ErrorKind::Io, "spilling broke off").because(cause))??;
        if pieces.left == 0 {
            return Ok(Spilled { file, len });
        }
        piece = pieces.next(PIECE).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;

    #[tokio::test]
    async fn objects_of_any_size_arrive_whole() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let location = crate::driver::Location::parse(&url).unwrap();
        let local = crate::driver::open(&location, &Default::default()).await;
        let local = local.unwrap().driver;
        let (from, memory) = (Memory::new(), Memory::new());
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let key = Key::from(format!("{size}"));
            let put = from.put(&key, bytes.clone().into(), PutOptions::default());
            let info = put.await.unwrap();
            for to in [&memory as &dyn Driver, &*local] {
                let sent = transfer(&from, &key, &info, to, PutOptions::default()).await;
                assert_eq!(sent.unwrap().size, Some(size as u64));
                let got = to.get(&key, GetOptions::default()).await.unwrap();
                let (_, got) = got.found().unwrap().collect().await.unwrap();
                assert!(got == bytes, "{size}");
            }
            from.put(&key, "newer".into(), PutOptions::default())
                .await
                .unwrap();
            let gone = transfer(&from, &key, &info, &memory, PutOptions::default()).await;
            assert_eq!(gone.unwrap_err().kind(), ErrorKind::Changed);
        }
    }
}
