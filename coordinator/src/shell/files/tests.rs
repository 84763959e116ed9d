//! What a directory must bear: kills at any byte, machines that fail, damage, and loss.

use super::disk::kill_after;
use super::*;
use crate::journal::{HEADER_LEN, RECORD_HEADER_LEN};

const PEER: PeerId = PeerId(1);

fn open(directory: &Path) -> Result<(Files, Recovered), FilesError> {
    Files::open(directory, PEER, [5; 16])
}

fn records(count: u64) -> Vec<Vec<u8>> {
    (1..=count).map(|index| vec![index as u8; 9]).collect()
}

fn written(directory: &Path, count: u64) {
    let (mut files, recovered) = open(directory).unwrap();
    for record in &records(count)[recovered.records.len()..] {
        files.append(record).unwrap();
    }
}

fn kept(directory: &Path) -> Vec<Vec<u8>> {
    open(directory).unwrap().1.records
}

#[test]
fn what_was_appended_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    written(directory.path(), 5);
    assert_eq!(kept(directory.path()), records(5));
    let incarnation = open(directory.path()).unwrap().0.incarnation();
    let again = Files::open(directory.path(), PEER, [6; 16]).unwrap();
    assert_eq!(again.0.incarnation(), incarnation);
}

#[test]
fn records_are_appended_beyond_the_space_made() {
    let directory = tempfile::tempdir().unwrap();
    let (mut files, _) = open(directory.path()).unwrap();
    let large: Vec<Vec<u8>> = (1..7).map(|n| vec![7; SPACE_AHEAD / 2 * n]).collect();
    for record in large.iter().chain(&records(2)) {
        files.append(record).unwrap();
    }
    drop(files);
    assert_eq!(kept(directory.path()), [large, records(2)].concat());
}

#[test]
fn a_servers_directory_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let frames = directory.path().join(FRAMES);
    std::fs::write(&frames, b"frames").unwrap();
    let refused = open(directory.path()).unwrap_err();
    assert!(matches!(refused, FilesError::Servers(_)), "{refused}");
    assert!(refused.to_string().contains("the directory of a server"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    // One that both had before goes on.
    std::fs::remove_file(&frames).unwrap();
    written(directory.path(), 2);
    std::fs::write(&frames, b"frames").unwrap();
    assert_eq!(kept(directory.path()), records(2));
}

#[test]
fn two_processes_never_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let held = open(directory.path()).unwrap();
    assert!(matches!(open(directory.path()), Err(FilesError::Locked(_))));
    drop(held);
    assert!(open(directory.path()).is_ok());
}

#[test]
fn a_file_cut_at_any_byte_goes_on_with_the_records_before_it() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    let path = directory.path().join(JOURNAL);
    let whole = std::fs::read(&path).unwrap();
    let end = HEADER_LEN + 3 * 25;
    for cut in HEADER_LEN..end {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let found = kept(directory.path());
        assert_eq!(found, records(found.len() as u64));
        assert_eq!(found.len(), (cut - HEADER_LEN) / 25);
        // And writing goes on where the torn record was.
        written(directory.path(), 4);
        assert_eq!(kept(directory.path()), records(4));
        // The same with the space behind it.
        let mut torn = whole.clone();
        torn[cut..].fill(0);
        std::fs::write(&path, &torn).unwrap();
        assert_eq!(kept(directory.path()), found);
    }
}

#[test]
fn damage_before_the_end_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    let path = directory.path().join(JOURNAL);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER_LEN + 20] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        open(directory.path()),
        Err(FilesError::Bad { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_snapshot_takes_the_place_of_the_records_before_it() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    let (mut files, _) = open(directory.path()).unwrap();
    files.snapshot(b"state", &[b"kept".to_vec()]).unwrap();
    files.append(b"next").unwrap();
    drop(files);
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!(recovered.snapshot, Some(b"state".to_vec()));
    assert_eq!(recovered.records, [b"kept".to_vec(), b"next".to_vec()]);
}

#[test]
fn after_an_error_nothing_more_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut files, _) = open(directory.path()).unwrap();
    files.append(&records(1)[0]).unwrap();
    let too_long = vec![0; crate::limits::MAX_RECORD + 1];
    assert!(matches!(
        files.append(&too_long),
        Err(FilesError::Bad { .. })
    ));
    assert!(matches!(files.append(b"more"), Err(FilesError::Failed(_))));
    assert!(matches!(
        files.snapshot(b"state", &[]),
        Err(FilesError::Failed(_))
    ));
    drop(files);
    assert_eq!(kept(directory.path()), records(1));
}

#[test]
fn lost_and_foreign_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    let other = Files::open(directory.path(), PeerId(2), [0; 16]);
    assert!(matches!(other, Err(FilesError::Foreign { .. })));
    let (mut files, _) = open(directory.path()).unwrap();
    files.snapshot(b"state", &[]).unwrap();
    drop(files);
    let snapshot = directory.path().join(SNAPSHOT);
    let bytes = std::fs::read(&snapshot).unwrap();
    std::fs::remove_file(&snapshot).unwrap();
    assert!(matches!(
        open(directory.path()),
        Err(FilesError::Missing(_))
    ));
    std::fs::write(&snapshot, bytes).unwrap();
    std::fs::remove_file(directory.path().join(JOURNAL)).unwrap();
    assert!(matches!(
        open(directory.path()),
        Err(FilesError::Missing(_))
    ));
}

/// A step of a process, and all that it has reported as kept when the step is through.
struct Step {
    name: &'static str,
    work: fn(&mut Files) -> Result<(), FilesError>,
    done: (Option<&'static str>, Vec<Vec<u8>>),
}

fn steps() -> Vec<Step> {
    let first = || records(2);
    let long = vec![9; 3 * SPACE_AHEAD];
    let retained = || vec![b"kept".to_vec(), b"too".to_vec()];
    let step = |name, work, snapshot, records| Step {
        name,
        work,
        done: (snapshot, records),
    };
    vec![
        step("append", |f| f.append(&records(1)[0]), None, records(1)),
        step("append again", |f| f.append(&records(2)[1]), None, first()),
        step(
            "append beyond the space",
            |f| f.append(&[9; 3 * SPACE_AHEAD]),
            None,
            [first(), vec![long]].concat(),
        ),
        step(
            "snapshot",
            |f| f.snapshot(b"state", &[b"kept".to_vec(), b"too".to_vec()]),
            Some("state"),
            retained(),
        ),
        step(
            "append after it",
            |f| f.append(b"next"),
            Some("state"),
            [retained(), vec![b"next".to_vec()]].concat(),
        ),
        step(
            "snapshot again",
            |f| f.snapshot(b"later state", &[]),
            Some("later state"),
            Vec::new(),
        ),
        step(
            "snapshot at once",
            |f| f.snapshot(b"latest state", &[b"x".to_vec()]),
            Some("latest state"),
            vec![b"x".to_vec()],
        ),
    ]
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    to
}

type Held = (Option<String>, Vec<Vec<u8>>);

fn held(recovered: Recovered) -> Held {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (recovered.snapshot.map(text), recovered.records)
}

/// Does `work` to copies of a directory, each killed after one byte more, and hands what is left to
/// `check`, with whether the work was through.
fn kill_everywhere(
    directory: &Path,
    work: impl Fn(&Path) -> Result<(), FilesError>,
    check: impl Fn(usize, &Path, bool),
) {
    for bytes in 0.. {
        let copy = copy(directory);
        kill_after(Some(bytes));
        let through = work(copy.path()).is_ok();
        kill_after(None);
        check(bytes, copy.path(), through);
        if through {
            return;
        }
    }
}

#[test]
fn a_kill_at_any_byte_loses_nothing_that_was_reported() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).unwrap());
    let mut before: Held = (None, Vec::new());
    for step in steps() {
        let after = (step.done.0.map(String::from), step.done.1.clone());
        let work = |path: &Path| {
            // Opening writes too, and is killed too.
            let (mut files, _) = open(path)?;
            (step.work)(&mut files)
        };
        kill_everywhere(directory.path(), work, |bytes, left, through| {
            let at = format!("{}, killed after {bytes} bytes", step.name);
            let (mut files, found) = open(left).expect(&at);
            let found = held(found);
            assert!(
                found == after || (!through && found == before),
                "{at}: {found:?}"
            );
            if !bytes.is_multiple_of(9) && !through {
                return;
            }
            // And it goes on from there, whatever the killed one left lying about.
            files.append(b"more").expect(&at);
            drop(files);
            let (mut files, more) = open(left).expect(&at);
            assert_eq!(held(more).1.last().unwrap(), b"more", "{at}");
            files.snapshot(b"new", &[b"more".to_vec()]).expect(&at);
            drop(files);
            let new = (Some("new".to_owned()), vec![b"more".to_vec()]);
            assert_eq!(held(open(left).expect(&at).1), new, "{at}");
        });
        let (mut files, _) = open(directory.path()).unwrap();
        (step.work)(&mut files).unwrap();
        before = after;
    }
}

#[test]
fn a_directory_that_was_begun_and_not_finished_is_begun_anew() {
    let empty = tempfile::tempdir().unwrap();
    let work = |path: &Path| Files::open(path, PEER, [1; 16]).map(drop);
    kill_everywhere(empty.path(), work, |bytes, left, through| {
        let (files, recovered) = Files::open(left, PEER, [2; 16]).unwrap();
        assert_eq!(recovered, Recovered::default());
        let kept = files.incarnation() == [1; 16];
        assert!(kept || !through, "killed after {bytes} bytes");
    });
}

#[test]
fn a_wiped_directory_is_another_one() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    for file in std::fs::read_dir(directory.path()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let (files, recovered) = Files::open(directory.path(), PEER, [6; 16]).unwrap();
    assert_eq!(
        (files.incarnation(), recovered),
        ([6; 16], Recovered::default())
    );
}

/// Bytes that a disk writes as a whole.
const SECTOR: usize = 512;

#[test]
fn a_machine_that_fails_keeps_any_sectors_of_the_last_record_and_no_hole() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    let path = directory.path().join(JOURNAL);
    let before = std::fs::read(&path).unwrap();
    let (mut files, _) = open(directory.path()).unwrap();
    // As long as several jobs that were written together.
    let record: Vec<u8> = (1..=200).flat_map(|n: u8| [n; 16]).collect();
    files.append(&record).unwrap();
    drop(files);
    let after = std::fs::read(&path).unwrap();
    let sectors = after.len().div_ceil(SECTOR);
    assert!(sectors > 6);
    for kept in 0..1_u32 << sectors.min(11) {
        let mut left = before.clone();
        left.resize(after.len(), 0);
        for sector in (0..sectors).filter(|sector| kept >> sector & 1 == 1) {
            let end = after.len().min((sector + 1) * SECTOR);
            left[sector * SECTOR..end].copy_from_slice(&after[sector * SECTOR..end]);
        }
        std::fs::write(&path, &left).unwrap();
        let found = kept_after_failure(directory.path());
        let whole = left[..HEADER_LEN + 3 * (RECORD_HEADER_LEN + 9) + record.len() + 16]
            == after[..HEADER_LEN + 3 * (RECORD_HEADER_LEN + 9) + record.len() + 16];
        let expected = if whole {
            [records(3), vec![record.clone()]].concat()
        } else {
            records(3)
        };
        assert_eq!(found, expected, "sectors {kept:b}");
    }
}

fn kept_after_failure(directory: &Path) -> Vec<Vec<u8>> {
    open(directory).expect("a torn tail, no damage").1.records
}

#[test]
fn a_snapshot_that_the_journal_does_not_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3);
    let (mut files, _) = open(directory.path()).unwrap();
    files.snapshot(b"state", &[]).unwrap();
    let old = std::fs::read(directory.path().join(SNAPSHOT)).unwrap();
    files.snapshot(b"later", &[]).unwrap();
    drop(files);
    std::fs::write(directory.path().join(SNAPSHOT), old).unwrap();
    let refused = open(directory.path()).unwrap_err();
    assert!(matches!(refused, FilesError::Other { .. }), "{refused}");
}
