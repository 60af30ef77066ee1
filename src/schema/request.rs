//! What `vzdump` was asked to do, by a command line, a job's section or an object of the API: checked, without defaults.

use serde_json::{Map, Value};

use super::words::{shell_quote, split_list};
use super::{Keep, Params, UsageError, api, notes, parse, tables::VZDUMP};

/// A `vzdump` command line, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VzdumpRequest {
    params: Params,
}

impl VzdumpRequest {
    /// Reads the arguments after the program's name (or after `vzdump`).
    ///
    /// # Errors
    /// The text for standard error; the exit code is 255.
    pub fn parse(args: &[String]) -> Result<Self, UsageError> {
        Self::new(parse(&VZDUMP, args)?)
    }

    /// From the keys and values of a section of `jobs.cfg`. Keys that belong to the job and not to its backup (`schedule`,
    /// `enabled` ...) must be gone. Only an array (`exclude-path`) may repeat.
    ///
    /// # Errors
    /// What is wrong, see [`UsageError::reasons`].
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, UsageError> {
        Self::new(api::from_pairs(&VZDUMP, pairs)?)
    }

    /// From an object of the API, as `pvesh get /cluster/backup --output-format json` prints one for each job: numbers
    /// and booleans may be strings, lists text or arrays, property strings text or objects. Keys of the job must be gone.
    ///
    /// # Errors
    /// As [`Self::from_pairs`].
    pub fn from_json(object: &Map<String, Value>) -> Result<Self, UsageError> {
        Self::new(api::from_json(&VZDUMP, object)?)
    }

    /// The object of the API that [`Self::from_json`] reads.
    pub fn to_json(&self) -> Map<String, Value> {
        api::to_json(&VZDUMP, &self.params)
    }

    fn new(params: Params) -> Result<Self, UsageError> {
        let refuse = |name: &str, reason: &str| Err(UsageError::param(&VZDUMP, name, reason));
        let given = |name: &str| params.text(name).is_some_and(|text| !text.is_empty());
        if !params.items(&VZDUMP, "vmid").is_empty() {
            let conflict = [("all", params.flag("all")), ("exclude", given("exclude")), ("pool", given("pool"))];
            if let Some((name, _)) = conflict.iter().find(|(_, given)| *given) {
                return refuse(name, "option conflicts with option 'vmid'");
            }
        } else if !params.flag("all") && !params.flag("stop") && !given("pool") && !params.has("exclude") {
            return refuse("vmid", "property is missing");
        }
        if let Some(Err(reason)) = params.text("notes-template").map(notes::verify) {
            return refuse("notes-template", &format!("{reason}\n"));
        }
        Ok(Self { params })
    }

    /// The call as the log shows it: `vzdump 100 --compress zstd --storage bk`; guests first, then options by name.
    pub fn command_line(&self) -> String {
        let mut line = "vzdump".to_owned();
        for vmid in self.params.items(&VZDUMP, "vmid") {
            line += &format!(" {vmid}");
        }
        // Whoever leaves guests out means all the others, and the log says so.
        let all = self.params.has("exclude") && self.params.text("pool").is_none_or(str::is_empty);
        if all {
            line += " --all 1";
        }
        for (name, values) in self.params.iter() {
            match name {
                "vmid" | "stdout" => {}
                "all" if all => {}
                "exclude-path" => {
                    values.iter().for_each(|path| line += &format!(" --{name} {}", shell_quote(path)));
                }
                _ => {
                    let value = match name {
                        "mailto" => split_list(&values[0]).join(","),
                        "prune-backups" => self.keep().unwrap_or(Keep::ALL).to_string(),
                        _ => values[0].clone(),
                    };
                    if !value.is_empty() {
                        line += &format!(" --{name} {}", shell_quote(&value));
                    }
                }
            }
        }
        line
    }

    fn keep(&self) -> Option<Keep> {
        self.params.properties(&VZDUMP, "prune-backups").map(|given| Keep::from_properties(&given))
    }

    /// The parameters given.
    pub fn params(&self) -> &Params {
        &self.params
    }
}
