use super::*;
use crate::driver::{Piece, Stored};
use proptest::prelude::*;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;

fn area(memory: u64, file_memory: u64) -> (tempfile::TempDir, Arc<StagingArea>) {
    let dir = tempfile::tempdir().unwrap();
    let area = StagingArea::new(StagingOptions {
        memory,
        file_memory,
        ..StagingOptions::new(dir.path().join("staging"))
    });
    (dir, area.unwrap())
}

fn origin(bytes: &[u8]) -> Origin {
    Origin {
        key: Key::from("k"),
        etag: ETag::new("e"),
        size: bytes.len() as u64,
    }
}

fn bytes_of(body: &Body) -> Vec<u8> {
    match body {
        Body::Memory(pieces) => pieces.concat(),
        Body::Source(source) => source.read(0..source.len()).unwrap().to_vec(),
    }
}

/// What the store has, by keys and etags.
type Objects = HashMap<(Key, String), Vec<u8>>;

fn stored(objects: &Objects, stored: &Stored) -> Vec<u8> {
    let object = &objects[&(stored.key.clone(), stored.etag.as_str().to_owned())];
    assert_eq!(object.len() as u64, stored.size);
    object[stored.range.start as usize..stored.range.end as usize].to_vec()
}

/// The bytes of a body of which the store may have some.
fn all_of(objects: &Objects, body: &Body) -> Vec<u8> {
    let Some(pieces) = body.pieces() else {
        return bytes_of(body);
    };
    let bytes = pieces.iter().map(|piece| match piece {
        Piece::Here(body) => bytes_of(body),
        Piece::Stored(piece) => stored(objects, piece),
    });
    bytes.collect::<Vec<_>>().concat()
}

/// What a reader gets of a stage of which nothing is missing.
fn read(objects: &Objects, stage: &Stage, range: Range<u64>) -> Vec<u8> {
    let holders = stage.holders(range).into_iter();
    let bytes = holders.map(|(range, holder)| match holder {
        Holder::Object(piece) => stored(objects, &piece),
        Holder::Stage | Holder::Origin => stage.read(range).unwrap().to_vec(),
    });
    bytes.collect::<Vec<_>>().concat()
}

fn errno(result: io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// What a stage is compared with.
struct Model {
    content: Vec<u8>,
    origin: Vec<u8>,
    /// The content at the last mark.
    marked: Vec<u8>,
    changed_since_mark: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize, u8),
    SetSize(u64),
    Zero(u64, u64),
    Fill(u64, u64),
    Read(u64, u64),
    Snapshot,
    Body(u64, u64),
    DropSnapshots,
    Mark,
    Rebase,
    Offer(u64),
    LetGo,
    ForgetClean,
    Assembled,
}

fn offset() -> impl Strategy<Value = u64> {
    // Close to the edges of chunks, or anywhere.
    let chunk = memory::CHUNK;
    prop_oneof![
        (0..3u64, 0..64u64).prop_map(move |(i, j)| (i * chunk + j).saturating_sub(32)),
        0..600_000u64,
        0..5_000u64,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![0..100usize, 0..300_000usize];
    prop_oneof![
        8 => (offset(), len, 1..=255u8).prop_map(|(at, len, fill)| Op::Write(at, len, fill)),
        2 => offset().prop_map(Op::SetSize),
        1 => Just(Op::SetSize(0)),
        2 => (offset(), offset()).prop_map(|(a, b)| Op::Zero(a.min(b), a.max(b))),
        3 => (offset(), offset()).prop_map(|(a, b)| Op::Fill(a.min(b), a.max(b))),
        3 => (offset(), offset()).prop_map(|(a, b)| Op::Read(a.min(b), a.max(b))),
        3 => Just(Op::Snapshot),
        2 => (offset(), offset()).prop_map(|(a, b)| Op::Body(a.min(b), a.max(b))),
        1 => Just(Op::DropSnapshots),
        1 => Just(Op::Mark),
        2 => Just(Op::Rebase),
        3 => (1..100_000u64).prop_map(Op::Offer),
        3 => Just(Op::LetGo),
        1 => Just(Op::ForgetClean),
        2 => Just(Op::Assembled),
    ]
}

fn fetch(stage: &mut Stage, model: &Model, range: Range<u64>) {
    for gap in stage.missing(range) {
        let bytes = &model.origin[gap.start as usize..gap.end as usize];
        stage.fill(gap.start, bytes).unwrap();
    }
}

fn cut(range: Range<u64>, bytes: &[u8]) -> Range<usize> {
    let end = (range.end as usize).min(bytes.len());
    (range.start as usize).min(end)..end
}

fn same(model: &Model, range: Range<usize>) {
    if !range.is_empty() {
        assert!(model.content[range.clone()] == model.origin[range]);
    }
}

fn run(area: &Arc<StagingArea>, origin_bytes: Option<Vec<u8>>, ops: Vec<Op>) {
    let mut stage = Stage::new(area, origin_bytes.as_deref().map(origin));
    let bytes = origin_bytes.unwrap_or_default();
    let mut objects = Objects::from([((Key::from("k"), "e".into()), bytes.clone())]);
    let mut offered: Option<(u64, Vec<u8>)> = None;
    let mut etags = 0;
    let mut model = Model {
        content: bytes.clone(),
        marked: bytes.clone(),
        origin: bytes,
        changed_since_mark: true,
    };
    let mut marks = false;
    let mut snapshots: Vec<(Body, Vec<u8>)> = Vec::new();
    for op in ops {
        match op {
            Op::Write(at, len, fill) => {
                let data: Vec<u8> = (0..len).map(|i| fill ^ (i / 7) as u8).collect();
                stage.write(at, &data).unwrap();
                let at = at as usize;
                if len > 0 {
                    let end = model.content.len().max(at + len);
                    model.content.resize(end, 0);
                    model.content[at..at + len].copy_from_slice(&data);
                    model.changed_since_mark = true;
                }
            }
            Op::SetSize(size) => {
                stage.set_size(size).unwrap();
                model.changed_since_mark |= size as usize != model.content.len();
                model.content.resize(size as usize, 0);
            }
            Op::Zero(start, end) => {
                stage.zero(start..end).unwrap();
                let range = cut(start..end, &model.content);
                model.changed_since_mark |= !range.is_empty();
                model.content[range].fill(0);
            }
            Op::Fill(start, end) => {
                // Also over what was written meanwhile, as a late answer of the store does.
                let range = cut(start..end, &model.origin);
                stage
                    .fill(range.start as u64, &model.origin[range.clone()])
                    .unwrap();
            }
            Op::Read(start, end) => {
                fetch(&mut stage, &model, start..end);
                let got = read(&objects, &stage, start..end);
                assert!(got == model.content[cut(start..end, &model.content)]);
            }
            Op::Snapshot => {
                fetch(&mut stage, &model, 0..u64::MAX);
                snapshots.push((stage.snapshot().unwrap(), model.content.clone()));
                model.marked = model.content.clone();
                model.changed_since_mark = false;
                marks = true;
            }
            Op::Body(start, end) => {
                let range = cut(start..end, &model.content);
                let wide = range.start as u64..range.end as u64;
                fetch(&mut stage, &model, wide.clone());
                let body = stage.body(wide).unwrap();
                snapshots.push((body, model.content[range].to_vec()));
            }
            Op::DropSnapshots => snapshots.clear(),
            Op::Mark => {
                stage.mark();
                model.marked = model.content.clone();
                model.changed_since_mark = false;
                marks = true;
            }
            Op::Rebase if marks => {
                etags += 1;
                let next = Origin {
                    etag: ETag::new(format!("e{etags}")),
                    ..origin(&model.marked)
                };
                let (key, etag) = (next.key.clone(), next.etag.as_str().to_owned());
                objects.insert((key, etag), model.marked.clone());
                stage.rebase(Some(next));
                model.origin = model.marked.clone();
                if !model.changed_since_mark {
                    assert!(stage.is_origin() && stage.dirty().is_empty());
                }
            }
            Op::Rebase => {}
            Op::Offer(least) => {
                etags += 1;
                let body = stage.offer(least, least * 3, etags).unwrap();
                offered = body.map(|body| (etags, bytes_of(&body)));
            }
            Op::LetGo => {
                if let Some((mark, bytes)) = offered.take() {
                    let piece = Stored {
                        key: Key::from("staging"),
                        etag: ETag::new(mark.to_string()),
                        size: bytes.len() as u64,
                        range: 0..bytes.len() as u64,
                        keep: None,
                    };
                    let unsent = stage.unsent();
                    let len = bytes.len() as u64;
                    objects.insert((piece.key.clone(), mark.to_string()), bytes);
                    if stage.let_go(mark, piece).unwrap() {
                        assert_eq!(stage.unsent(), unsent - len);
                        assert!(stage.has_away());
                    }
                }
            }
            Op::ForgetClean => stage.forget_clean().unwrap(),
            Op::Assembled => {
                snapshots.push((stage.assembled().unwrap(), model.content.clone()));
                model.marked = model.content.clone();
                model.changed_since_mark = false;
                marks = true;
            }
        }
        let growth = stage.growth(0..stage.size());
        let known = stage.size() - growth;
        assert!(known <= stage.unsent(), "{known} bytes need no more room");
        assert_eq!(stage.size(), model.content.len() as u64);
        for (body, expected) in &snapshots {
            assert!(all_of(&objects, body) == *expected, "a snapshot changed");
        }
        if stage.is_origin() {
            assert!(model.content == model.origin);
        }
        // Every byte outside of the dirty ranges is the origin's.
        let mut clean = 0..0;
        for dirty in stage.dirty() {
            clean.end = dirty.start as usize;
            same(&model, clean);
            clean = dirty.end as usize..0;
        }
        clean.end = model.content.len();
        same(&model, clean);
    }
    let mut at = 0;
    while at < stage.size() {
        let data = stage.next_data(at).unwrap_or(stage.size());
        assert!(
            model.content[at as usize..data as usize]
                .iter()
                .all(|b| *b == 0)
        );
        at = stage.next_hole(data).max(at + 1);
    }
    fetch(&mut stage, &model, 0..u64::MAX);
    assert!(all_of(&objects, &stage.snapshot().unwrap()) == model.content);
    drop((stage, snapshots));
    assert_eq!((area.memory(), area.spilled()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Random operations agree with plain bytes: in memory, across the switch (by the file's
    /// limit or by the area's), and in a spill file from the first byte.
    #[test]
    fn a_stage_is_its_bytes(
        form in 0..4usize,
        origin in prop_oneof![Just(None), (0..400_000usize, 1..250u8).prop_map(Some)],
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let (memory, file) = [
            (1 << 30, 1 << 30),
            (1 << 30, 400_000),
            (300_000, 1 << 30),
            (0, 0),
        ][form];
        let (_dir, area) = area(memory, file);
        let bytes = origin.map(|(len, seed)| {
            (0..len).map(|i| seed.wrapping_add((i % 251) as u8) | 1).collect()
        });
        run(&area, bytes, ops);
    }
}

#[test]
fn small_files_take_little_memory() {
    let (_dir, area) = area(1 << 20, 1 << 20);
    let mut stage = Stage::new(&area, None);
    assert!(!stage.is_origin() && !stage.written());
    stage.write(0, b"hello").unwrap();
    assert!(stage.memory() <= 64 && area.memory() <= 64);
    let Body::Memory(pieces) = stage.snapshot().unwrap() else {
        panic!("a small file is in memory");
    };
    assert_eq!(pieces.len(), 1);
    assert_eq!(pieces[0], "hello");
    assert_eq!(area.spilled(), 0);
}

#[test]
fn chunks_of_slabs_keep_to_themselves() {
    const PIECE: u64 = 1 << 20;
    let (_dir, area) = area(u64::MAX, u64::MAX);
    let mut stage = Stage::new(&area, None);
    let piece = |number: u64| vec![number as u8 + 1; PIECE as usize];
    for number in 0..80 {
        stage.write(number * PIECE, &piece(number)).unwrap();
    }
    let before = stage.snapshot().unwrap();
    stage.write(70 * PIECE - 1, b"xyz").unwrap();
    stage.write(80 * PIECE + 5, b"end").unwrap();
    let mut expected: Vec<u8> = (0..80).flat_map(piece).collect();
    assert!(bytes_of(&before) == expected);
    expected[70 * PIECE as usize - 1..][..3].copy_from_slice(b"xyz");
    expected.extend_from_slice(b"\0\0\0\0\0end");
    assert!(bytes_of(&stage.snapshot().unwrap()) == expected);
    assert_eq!(area.spilled(), 0);
    drop((stage, before));
    assert_eq!(area.memory(), 0);
}

#[test]
fn sparse_files_take_no_room() {
    for file_memory in [1 << 20, 0] {
        let (_dir, area) = area(1 << 20, file_memory);
        let mut stage = Stage::new(&area, None);
        stage.write(1 << 40, b"x").unwrap();
        stage.set_size(1 << 41).unwrap();
        assert!(area.memory() + area.spilled() <= memory::CHUNK);
        let body = stage.snapshot().unwrap();
        assert_eq!(body.len(), 1 << 41);
        let Body::Source(source) = body else {
            panic!("a list of zeros would be long");
        };
        let start = (1 << 40) - 1;
        assert_eq!(source.read(start..start + 3).unwrap(), &b"\0x\0"[..]);
        assert_eq!(stage.next_data(5), Some(1 << 40));
        assert_eq!(stage.next_hole(1 << 40), (1 << 40) + 1);
        assert_eq!(stage.next_data((1 << 40) + 1), None);
        stage.zero(0..1 << 41).unwrap();
        assert_eq!(stage.next_data(0), None);
        assert_eq!(stage.dirty(), vec![0..1 << 41; 1]);
    }
}

#[test]
fn refusals_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let area = StagingArea::new(StagingOptions {
        memory: 1 << 20,
        file_memory: 1000,
        largest_file: 1 << 20,
        disk: 5000,
        ..StagingOptions::new(dir.path())
    })
    .unwrap();
    let mut stage = Stage::new(&area, None);
    stage.write(0, &[1; 900]).unwrap();
    // Neither on the way to the file nor in it.
    assert_eq!(errno(stage.write(100, &[2; 6000])), libc::ENOSPC);
    assert!(area.spilled() == 0 && area.memory() > 0);
    stage.write(900, &[1; 3100]).unwrap();
    assert_eq!((area.spilled(), area.memory()), (4000, 0));
    assert_eq!(errno(stage.write(3900, &[2; 2000])), libc::ENOSPC);
    assert_eq!(errno(stage.write(1 << 20, b"x")), libc::EFBIG);
    assert_eq!(errno(stage.write(u64::MAX, b"x")), libc::EFBIG);
    assert_eq!(errno(stage.set_size((1 << 20) + 1)), libc::EFBIG);
    assert_eq!(stage.size(), 4000);
    assert_eq!(stage.read(0..u64::MAX).unwrap(), vec![1; 4000]);
    // A snapshot's file counts until it is gone.
    let body = stage.snapshot().unwrap();
    assert_eq!(errno(stage.write(0, &[2; 1001])), libc::ENOSPC);
    assert_eq!(area.spilled(), 4000);
    stage.write(4000, &[3; 1000]).unwrap();
    assert_eq!(errno(stage.write(0, b"x")), libc::ENOSPC);
    assert_eq!(bytes_of(&body), vec![1; 4000]);
    drop(body);
    stage.write(0, b"x").unwrap();
    assert_eq!(area.spilled(), 5000);
    stage.set_size(0).unwrap();
    assert_eq!(area.spilled(), 0);
}

#[test]
fn appending_beside_a_snapshot_copies_no_file() {
    let (_dir, area) = area(0, 0);
    let mut stage = Stage::new(&area, None);
    let mut bodies = Vec::new();
    for part in 0..8u64 {
        stage.write(part << 20, &vec![part as u8; 1 << 20]).unwrap();
        bodies.push(stage.body(part << 20..(part + 1) << 20).unwrap());
        assert_eq!(area.spilled(), (part + 1) << 20);
    }
    // But for what is changed.
    stage.write(0, &[9]).unwrap();
    assert_eq!(area.spilled(), (8 << 20) + 1);
    assert_eq!(bytes_of(&bodies[0]), vec![0; 1 << 20]);
}

#[test]
fn changing_what_no_snapshot_reads_copies_no_file() {
    let (_dir, area) = area(0, 0);
    let mut stage = Stage::new(&area, None);
    stage.write(0, &vec![1; 8 << 20]).unwrap();
    let late = stage.body(6 << 20..7 << 20).unwrap();
    let early = stage.body(0..1 << 20).unwrap();
    // A header is filled in while the last of what was written is on its way.
    drop(early);
    stage.write(0, b"header").unwrap();
    stage.write(7 << 20, b"tail").unwrap();
    stage.set_size(7 << 20).unwrap();
    assert_eq!(area.spilled(), 7 << 20);
    assert_eq!(bytes_of(&late), vec![1; 1 << 20]);
    stage.write((6 << 20) + 1, b"x").unwrap();
    assert_eq!(area.spilled(), (7 << 20) + 1);
    assert_eq!(bytes_of(&late), vec![1; 1 << 20]);
    // Once is enough.
    stage.write(6 << 20, b"xyz").unwrap();
    assert_eq!(area.spilled(), (7 << 20) + 3);
    assert_eq!(bytes_of(&late), vec![1; 1 << 20]);
    drop(late);
    assert_eq!(area.spilled(), 7 << 20);
}

#[test]
fn snapshots_of_a_spill_file_stay_what_they_were() {
    const SIZE: usize = 1 << 16;
    let (_dir, area) = area(0, 0);
    let mut stage = Stage::new(&area, None);
    let mut rng = 7u64;
    let mut below = |most: u64| {
        rng = rng
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (rng >> 33) % most
    };
    let (mut content, mut living) = (vec![0u8; SIZE], Vec::new());
    stage.set_size(SIZE as u64).unwrap();
    for round in 0..2_000usize {
        let at = below(SIZE as u64) as usize;
        let len = below((SIZE - at) as u64 + 1).min(4000) as usize;
        let byte = round as u8;
        match below(8) {
            0 => {
                stage.zero(at as u64..(at + len) as u64).unwrap();
                content[at..at + len].fill(0);
            }
            1 => {
                stage.set_size(at as u64).unwrap();
                stage.set_size(SIZE as u64).unwrap();
                content[at..].fill(0);
            }
            2 => {
                let body = stage.body(at as u64..(at + len) as u64).unwrap();
                living.push((body, content[at..at + len].to_vec()));
            }
            3 if !living.is_empty() => {
                living.swap_remove(below(living.len() as u64) as usize);
            }
            _ => {
                stage.write(at as u64, &vec![byte; len]).unwrap();
                content[at..at + len].fill(byte);
            }
        }
        for (body, was) in &living {
            assert!(bytes_of(body) == *was, "round {round}");
        }
    }
    assert!(stage.read(0..SIZE as u64).unwrap() == content);
    living.clear();
    assert!(area.spilled() <= SIZE as u64);
}

#[test]
fn missing_bytes_are_never_taken_for_zeros() {
    let (_dir, area) = area(1 << 20, 1 << 20);
    let mut stage = Stage::new(&area, Some(origin(&[7; 100])));
    assert!(stage.is_origin());
    stage.write(10, &[1; 10]).unwrap();
    assert_eq!(stage.missing(0..100), [0..10, 20..100]);
    assert!(stage.read(5..15).is_err());
    assert!(stage.snapshot().is_err());
    assert_eq!(stage.read(10..20).unwrap(), vec![1; 10]);
    stage.set_size(50).unwrap();
    stage.set_size(100).unwrap();
    assert_eq!(stage.missing(0..100), [0..10, 20..50]);
    stage.rebase(None);
    assert!(!stage.is_origin() && stage.written());
}

#[test]
fn the_directory_is_private_and_swept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(path.join("spill-0"), "left by a crash").unwrap();
    std::fs::write(path.join("other"), "not ours").unwrap();
    let area = StagingArea::new(StagingOptions::new(&path)).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let mut stage = Stage::new(&area, None);
    stage.write(0, &vec![1; 20 << 20]).unwrap();
    assert_eq!(area.spilled(), 20 << 20);
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().flatten().collect();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].file_name(), "other");
}

#[test]
fn what_was_handed_over_counts_until_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let area = StagingArea::new(StagingOptions::new(dir.path())).unwrap();
    type Change = fn(&mut Stage);
    let changes: [(Change, bool); 7] = [
        (|stage| stage.write(8, b"behind").unwrap(), true),
        (|stage| stage.write(7, b"x").unwrap(), false),
        (|stage| stage.set_size(8).unwrap(), true),
        (|stage| stage.set_size(7).unwrap(), false),
        (|stage| stage.set_size(100).unwrap(), true),
        (|stage| stage.zero(8..9).unwrap(), true),
        (|stage| stage.zero(0..1).unwrap(), false),
    ];
    for (change, holds) in changes {
        let mut stage = Stage::new(&area, None);
        stage.write(0, b"0123456789").unwrap();
        assert!(stage.hand_over(7, 4..8).is_err(), "not from the start");
        stage.hand_over(7, 0..4).unwrap();
        stage.hand_over(7, 4..8).unwrap();
        assert!(stage.hand_over(7, 4..8).is_err(), "twice");
        assert_eq!(stage.handed_over(7), Some(8));
        assert_eq!(stage.handed_over(8), None);
        change(&mut stage);
        assert_eq!(stage.handed_over(7), holds.then_some(8));
    }
}
