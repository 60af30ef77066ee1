//! Tells people what became of a job: picks the way, sends, and turns what went wrong on it into warnings of the task. The
//! backups are done by then; nothing here can fail them.

use std::time::Duration;

use super::log::LogSink;
use super::report::JobReport;
use crate::host::{Cancel, Host};
use crate::notify::{self, Config};
use crate::schema::{MailNotification, NotificationMode, VzdumpOptions};

/// Who mails of the old way come from.
const AUTHOR: &str = "vzdump backup tool";
/// How long a target may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for a job that was told to stop: whoever told it waits 15 seconds.
const HURRY: Duration = Duration::from_secs(8);

/// How a job's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By mail to `mailto`.
    Mail,
    /// As the node's notification system says.
    System,
    /// Not at all.
    Silent,
}

fn way(options: &VzdumpOptions, failed: bool) -> Way {
    let mail = !options.mailto.is_empty();
    match options.notification_mode {
        NotificationMode::NotificationSystem => Way::System,
        NotificationMode::Auto if !mail => Way::System,
        // Only the old way asks whether good news are wanted.
        _ if mail && (failed || options.mailnotification == MailNotification::Always) => Way::Mail,
        _ => Way::Silent,
    }
}

/// Tells what `report` says.
pub(super) fn tell(host: &Host, options: &VzdumpOptions, report: &JobReport, log: &LogSink, cancel: &Cancel) {
    let config = match way(options, report.has_failed()) {
        Way::Silent => return,
        Way::Mail => Config::mail_to(&options.mailto, AUTHOR),
        Way::System => Config::load(host),
    };
    let notification = report.notification(host.node(), &host.fqdn(), host.now());
    let limit = if cancel.is_set() { HURRY } else { PATIENCE };
    let told = notify::send(host, &config, &notification, limit);
    told.hints.iter().for_each(|hint| log.info(hint));
    told.warnings.iter().for_each(|warning| log.warn(warning));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Params, VzdumpRequest};

    #[test]
    fn which_way() {
        use Way::{Mail, Silent, System};
        let to = "--mailto=a@example.com";
        // The words, then the way of a job that succeeded and of one that failed.
        for (words, good, bad) in [
            (&[][..], System, System),
            (&["--mailto", ""], System, System),
            (&["--mailnotification=failure"], System, System),
            (&[to], Mail, Mail),
            (&[to, "--mailnotification=failure"], Silent, Mail),
            (&[to, "--notification-mode=auto", "--mailnotification=always"], Mail, Mail),
            (&[to, "--notification-mode=legacy-sendmail"], Mail, Mail),
            (&[to, "--notification-mode=legacy-sendmail", "--mailnotification=failure"], Silent, Mail),
            (&["--notification-mode=legacy-sendmail"], Silent, Silent),
            (&[to, "--notification-mode=notification-system", "--mailnotification=failure"], System, System),
        ] {
            let words: Vec<String> = ["100"].iter().chain(words).map(|word| (*word).to_owned()).collect();
            let request = VzdumpRequest::parse(&words).unwrap();
            let options = VzdumpOptions::merge(&request, &Params::default()).unwrap();
            assert_eq!((way(&options, false), way(&options, true)), (good, bad), "{words:?}");
        }
    }
}
