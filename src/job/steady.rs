//! Readings of what somebody else may be writing: the state of a TPM, which `swtpm` keeps in a file that QEMU does not know and
//! no snapshot covers. The guest runs on around the instant, so it is read on both sides of it.

use std::time::Duration;

/// How often it is read again while it changes.
const MOST_READINGS: usize = 10;
/// Between two readings.
const PAUSE: Duration = Duration::from_millis(10);

/// What is the same before and after the instant was so at the instant. What was written to in that moment is taken as it is
/// once two readings agree, so that none is taken in the middle of a write.
///
/// # Errors
/// Those of `read`.
pub(super) fn steady<T: PartialEq, E>(before: &T, read: impl Fn() -> Result<T, E>) -> Result<T, E> {
    let mut last = read()?;
    if last == *before {
        return Ok(last);
    }
    for _ in 0..MOST_READINGS {
        std::thread::sleep(PAUSE);
        let again = read()?;
        if again == last {
            break;
        }
        last = again;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_disk_beside_qemu_is_not_taken_in_the_middle_of_a_write() {
        let readings = |values: &'static [u8]| {
            let at = Cell::new(0);
            move || {
                at.set(at.get() + 1);
                values.get(at.get() - 1).copied().ok_or(at.get())
            }
        };
        assert_eq!(steady(&1, readings(&[1])), Ok(1), "nothing was written");
        assert_eq!(steady(&1, readings(&[2, 3, 4, 4])), Ok(4), "two readings agree");
        assert_eq!(steady(&1, readings(&[2, 3])), Err(3), "errors are not passed over");
        let endless = Cell::new(0);
        assert!(
            steady(&-1, || {
                endless.set(endless.get() + 1);
                Ok::<_, ()>(endless.get())
            })
            .is_ok(),
            "one that always changes does not hold the backup"
        );
    }
}
