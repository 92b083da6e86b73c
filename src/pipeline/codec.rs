//! The codecs, a frame at a time: each thread keeps one of its own.

use std::io;

use crc_fast::CrcAlgorithm;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::bulk::{Compressor, Decompressor};

use super::FrameFault;
use super::frames::{Entry, Format, gzip};
use crate::backup_set::Codec;

/// Packs frames.
pub(super) enum Packer {
    Zstd(Compressor<'static>),
    Gzip(Compress),
    Plain,
}

impl Packer {
    pub(super) fn new(codec: Codec) -> io::Result<Self> {
        match codec {
            Codec::Zstd(level) => {
                let mut compressor = Compressor::new(i32::from(level.get()))?;
                compressor.include_checksum(true)?;
                compressor.include_contentsize(true)?;
                Ok(Self::Zstd(compressor))
            }
            Codec::Gzip(level) => Ok(Self::Gzip(Compress::new(flate2::Compression::new(level.get().into()), false))),
            Codec::Plain => Ok(Self::Plain),
        }
    }

    /// Makes the frame of `plain`; `frame` is emptied first, and has room for the largest one.
    pub(super) fn pack(&mut self, plain: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        frame.clear();
        match self {
            Self::Zstd(compressor) => {
                frame.reserve_exact(Format::Zstd.bound(plain.len()));
                compressor.compress_to_buffer(plain, frame).map(drop)
            }
            Self::Gzip(deflate) => {
                frame.reserve_exact(Format::Gzip.bound(plain.len()));
                gzip::begin(frame);
                deflate.reset();
                // Without room for it, it would not say that the stream ended.
                if deflate.compress_vec(plain, frame, FlushCompress::Finish)? != Status::StreamEnd {
                    return Err(io::Error::other("deflate needs more room than it may have"));
                }
                gzip::end(frame, checksum(plain), plain.len());
                Ok(())
            }
            Self::Plain => {
                frame.extend_from_slice(plain);
                Ok(())
            }
        }
    }
}

/// Unpacks frames.
pub(super) enum Unpacker {
    Zstd(Decompressor<'static>),
    Gzip(Decompress),
    Plain,
}

impl Unpacker {
    pub(super) fn new(format: Format) -> io::Result<Self> {
        match format {
            Format::Zstd => Decompressor::new().map(Self::Zstd),
            Format::Gzip => Ok(Self::Gzip(Decompress::new(false))),
            Format::Plain => Ok(Self::Plain),
        }
    }

    /// Checks `frame`, and makes `plain` what it holds.
    pub(super) fn unpack(&mut self, entry: Entry, frame: &[u8], plain: &mut Vec<u8>) -> Result<(), FrameFault> {
        self.format().check(frame, entry)?;
        let plain_bytes = entry.plain_bytes as usize;
        plain.clear();
        plain.reserve_exact(plain_bytes);
        let undecodable = |why: String| FrameFault::Undecodable(why);
        match self {
            Self::Zstd(decompressor) => {
                decompressor.decompress_to_buffer(frame, plain).map_err(|error| undecodable(error.to_string()))?;
            }
            Self::Gzip(inflate) => {
                let content = gzip::content(frame);
                inflate.reset(false);
                let ended = inflate.decompress_vec(content, plain, FlushDecompress::Finish);
                if ended.map_err(|error| undecodable(error.to_string()))? != Status::StreamEnd {
                    return Err(undecodable("it holds more than it promises, or does not end".to_owned()));
                }
                if inflate.total_in() != content.len() as u64 {
                    return Err(FrameFault::Length);
                }
                if checksum(plain) != entry.checksum {
                    return Err(undecodable("its content does not match its checksum".to_owned()));
                }
            }
            Self::Plain => plain.extend_from_slice(frame),
        }
        if plain.len() == plain_bytes {
            Ok(())
        } else {
            Err(FrameFault::ContentSize { header: plain.len() as u64, table: entry.plain_bytes })
        }
    }

    fn format(&self) -> Format {
        match self {
            Self::Zstd(_) => Format::Zstd,
            Self::Gzip(_) => Format::Gzip,
            Self::Plain => Format::Plain,
        }
    }
}

/// gzip's checksum.
fn checksum(plain: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, plain)).expect("a CRC-32 has 32 bits")
}
