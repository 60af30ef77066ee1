//! A guest's number.

use std::fmt;
use std::str::FromStr;

/// The number of a guest, 100 to 999999999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u32);

/// Not a guest's number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("value does not look like a valid VM ID")]
pub struct VmidError;

impl Vmid {
    /// The guest numbered `number`.
    ///
    /// # Errors
    /// When it is not in 100..=999999999.
    pub fn new(number: u32) -> Result<Self, VmidError> {
        if (100..=999_999_999).contains(&number) { Ok(Self(number)) } else { Err(VmidError) }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Vmid {
    type Err = VmidError;

    /// Leading zeros are dropped, as `vzdump 0102` means guest 102.
    fn from_str(text: &str) -> Result<Self, VmidError> {
        let digits = text.trim_start_matches('0');
        if digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(VmidError);
        }
        Self::new(digits.parse().map_err(|_| VmidError)?)
    }
}

impl fmt::Display for Vmid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
