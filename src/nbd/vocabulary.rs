//! The numbers of the protocol that both sides speak: magics, options, replies, commands, flags, errors.
//! Specification: `doc/proto.md` of the NBD project.

pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Flags of the greeting; the client answers with those it takes.
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_LIST: u32 = 3;
pub(super) const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;
pub(super) const REP_IS_ERROR: u32 = 1 << 31;
pub(super) const REP_ERR_UNSUP: u32 = REP_IS_ERROR | 1;
pub(super) const REP_ERR_INVALID: u32 = REP_IS_ERROR | 3;
pub(super) const REP_ERR_UNKNOWN: u32 = REP_IS_ERROR | 6;
pub(super) const REP_ERR_TOO_BIG: u32 = REP_IS_ERROR | 9;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// What the protocol lets a client assume when the server tells no limit.
pub(super) const DEFAULT_MAX_BLOCK: u32 = 32 << 20;

/// Flags of an export.
pub(super) const HAS_FLAGS: u16 = 1;
pub(super) const SEND_READ_ONLY: u16 = 1 << 1;
pub(super) const SEND_FLUSH: u16 = 1 << 2;
pub(super) const SEND_FUA: u16 = 1 << 3;
pub(super) const SEND_TRIM: u16 = 1 << 5;
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const SEND_DF: u16 = 1 << 7;
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;

pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Flags of a request. That of a read that is to be answered in one chunk is [`super::wire::DONT_FRAGMENT`].
pub(super) const FLAG_FUA: u16 = 1;
pub(super) const FLAG_NO_HOLE: u16 = 1 << 1;
pub(super) const FLAG_REQ_ONE: u16 = 1 << 3;

/// The only flag of a chunk: the reply ends with it.
pub(super) const FLAG_DONE: u16 = 1;
pub(super) const TYPE_NONE: u16 = 0;
pub(super) const TYPE_OFFSET_DATA: u16 = 1;
pub(super) const TYPE_OFFSET_HOLE: u16 = 2;
pub(super) const TYPE_BLOCK_STATUS: u16 = 5;
pub(super) const TYPE_IS_ERROR: u16 = 1 << 15;
pub(super) const TYPE_ERROR: u16 = TYPE_IS_ERROR | 1;
pub(super) const TYPE_ERROR_OFFSET: u16 = TYPE_IS_ERROR | 2;

/// A string of the protocol is at most this long; so is the message of an error.
pub(super) const MAX_STRING: u32 = 4096;

pub(super) const EPERM: u32 = 1;
pub(super) const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
pub(super) const EOVERFLOW: u32 = 75;
