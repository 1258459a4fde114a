//! Ztocs that are no honest tool's; honest ones are read in the integration tests, where SOCI's own
//! tool makes them.

use super::*;

fn refused(ztoc: &[u8]) -> String {
    let layer = Digest::of(b"layer");
    index(ztoc, layer, 1000).unwrap_err().to_string()
}

#[test]
fn buffers_that_lead_nowhere_are_refused() {
    let cases: [&[u8]; 6] = [
        b"",
        b"\x04\0\0",
        b"\xff\xff\xff\xff\0\0\0\0",
        // A table whose vtable lies before the buffer, and one whose lies behind.
        b"\x04\0\0\0\x40\0\0\0",
        b"\x04\0\0\0\0\0\0\x80",
        // A table that is its own vtable.
        b"\x04\0\0\0\0\0\0\0\xff\xff\xff\xff",
    ];
    for ztoc in cases {
        let error = refused(ztoc);
        assert!(error.contains("ztoc"), "{ztoc:?}: {error}");
    }
}

#[test]
fn noise_is_refused_whatever_it_is() {
    let mut state = 7u64;
    for round in 0..2000 {
        let len = 4 + round % 300;
        let noise: Vec<u8> = (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Small numbers lead somewhere more often.
                (state >> 32) as u8 & if round % 2 == 0 { 0x1f } else { 0xff }
            })
            .collect();
        refused(&noise);
    }
}

#[test]
fn strings_that_share_their_bytes_are_counted() {
    // One byte vector of 64 bytes, asked for again and again.
    let mut bytes = vec![0; 100];
    bytes[..4].copy_from_slice(&12u32.to_le_bytes());
    // vtable at 4: length 6, table length 8, field 0 at 4; table at 12.
    bytes[4..10].copy_from_slice(&[6, 0, 8, 0, 4, 0]);
    bytes[12..16].copy_from_slice(&8i32.to_le_bytes());
    bytes[16..20].copy_from_slice(&4u32.to_le_bytes());
    bytes[20..24].copy_from_slice(&64u32.to_le_bytes());
    let buffer = Buffer::new(&bytes);
    let table = buffer.root().unwrap();
    let given = (0..100).take_while(|_| table.bytes(0).is_ok()).count();
    assert_eq!(given, 400 / 64);
    assert_eq!(table.string(1).unwrap(), "", "an absent field");
}

#[test]
fn checkpoints_of_both_versions_are_read_and_others_refused() {
    let record = |at: u64, out: u64, bits: u8| {
        let mut record = at.to_le_bytes().to_vec();
        record.extend_from_slice(&out.to_le_bytes());
        record.push(bits);
        record.extend_from_slice(&vec![9; WINDOW]);
        record
    };
    let head = |count: u32| [&count.to_le_bytes()[..], &[0; 8]].concat();
    let second = [head(2), record(10, 0, 0), record(500, 4000, 3)].concat();
    let first = [head(2), record(500, 4000, 3)].concat();
    for bytes in [&second, &first] {
        let read = checkpoints(bytes).unwrap();
        let places: Vec<_> = read.iter().map(|c| (c.at, c.out, c.bits)).collect();
        assert_eq!(places, [(10, 0, 0), (500, 4000, 3)]);
    }
    for bytes in [
        &second[..11],
        &second[..second.len() - 1],
        &head(3),
        &head(u32::MAX),
    ] {
        assert!(checkpoints(bytes).is_err());
    }
}
