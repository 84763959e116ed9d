//! What a shared, locked file promises.

use std::fs;

use ramkeep_memory::{SharedFile, SharedFileError};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

#[test]
fn what_was_written_is_there_when_the_file_is_opened_again() {
    let folder = folder();
    let path = folder.path().join("frames");
    let file = SharedFile::open(&path, 8192).unwrap();
    let mut region = file.region(4096..8192).unwrap();
    region.write(10, b"bytes");
    region.store_u64_release(16, 0x0102_0304_0506_0708);
    drop((region, file));
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    assert_eq!(fs::read(&path).unwrap()[4096 + 16], 8, "little-endian");

    let file = SharedFile::open(&path, 8192).unwrap();
    let region = file.region(0..8192).unwrap();
    let mut bytes = [0; 5];
    region.read_into(4106, &mut bytes);
    assert_eq!(&bytes, b"bytes");
    assert_eq!(region.load_u64_acquire(4112), 0x0102_0304_0506_0708);
    assert!(region[..4096].iter().all(|&byte| byte == 0));
}

#[test]
fn a_file_is_open_once_at_a_time_and_as_long_as_a_region_lives() {
    let folder = folder();
    let path = folder.path().join("frames");
    let file = SharedFile::open(&path, 4096).unwrap();
    assert!(matches!(
        SharedFile::open(&path, 4096),
        Err(SharedFileError::InUse)
    ));
    let region = file.region(0..1).unwrap();
    drop(file);
    assert!(matches!(
        SharedFile::open(&path, 4096),
        Err(SharedFileError::InUse)
    ));
    drop(region);
    assert!(SharedFile::open(&path, 4096).is_ok());
}

#[test]
fn a_file_grows_but_is_never_cut_off() {
    let folder = folder();
    let path = folder.path().join("frames");
    fs::write(&path, b"begin").unwrap();
    let file = SharedFile::open(&path, 4096).unwrap();
    assert_eq!(file.len(), 4096);
    assert_eq!(&file.region(0..6).unwrap()[..], b"begin\0");
    drop(file);
    let error = SharedFile::open(&path, 100).unwrap_err();
    assert!(
        matches!(
            error,
            SharedFileError::TooLong {
                found: 4096,
                wanted: 100
            }
        ),
        "{error}"
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn regions_never_overlap() {
    let folder = folder();
    let file = SharedFile::open(&folder.path().join("frames"), 100).unwrap();
    let middle = file.region(40..60).unwrap();
    for (start, end) in [
        (0, 41),
        (40, 60),
        (45, 50),
        (59, 100),
        (0, 100),
        (90, 101),
        (5, 5),
    ] {
        assert!(file.region(start..end).is_err(), "{start}..{end}");
    }
    let (before, after) = (file.region(0..40).unwrap(), file.region(60..100).unwrap());
    drop(middle);
    let middle = file.region(50..60).unwrap();
    assert!(file.region(40..51).is_err());
    drop((before, middle, after));
    assert!(file.region(0..100).is_ok());
}

#[test]
fn room_can_be_reserved_and_bytes_brought_to_disk() {
    let folder = folder();
    let file = SharedFile::open(&folder.path().join("frames"), 1 << 20).unwrap();
    let mut region = file.region(4096..1 << 20).unwrap();
    region.write(0, b"kept");
    region.reserve().unwrap();
    region.sync().unwrap();
    assert_eq!(&region[..4], b"kept");
}

#[test]
#[should_panic(expected = "word at odd offset 4")]
fn a_word_at_an_unaligned_place_is_refused() {
    let folder = folder();
    let file = SharedFile::open(&folder.path().join("frames"), 100).unwrap();
    let _ = file.region(0..100).unwrap().load_u64_acquire(4);
}

#[test]
#[should_panic(expected = "out of range")]
fn a_write_past_a_region_is_refused() {
    let folder = folder();
    let file = SharedFile::open(&folder.path().join("frames"), 100).unwrap();
    file.region(0..10).unwrap().write(8, b"abc");
}

#[test]
fn populating_a_region_changes_no_byte() {
    let folder = folder();
    let file = SharedFile::open(&folder.path().join("frames"), 65_536).unwrap();
    let mut region = file.region(4096..65_536).unwrap();
    region.write(5000, b"bytes");
    region.populate(0..61_440);
    region.populate(100..100);
    assert_eq!(&region[5000..5005], b"bytes");
    assert!(region[..5000].iter().all(|&byte| byte == 0));
}
