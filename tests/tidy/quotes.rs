//! Rules for what documents quote: code is that of the file it names, settings of modules are taken.

use toml_edit::{Document, Item};

use crate::tree::{File, Tree};

/// A block between fences.
struct Block<'a> {
    /// Where it begins.
    line: usize,
    /// What stands behind the fence: a language, and of code that is quoted its file.
    words: Vec<&'a str>,
    text: String,
}

fn blocks(file: &File) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (line, text) in file.lines() {
        match (text.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) => {
                open = Some(Block { line, words: info.split_whitespace().collect(), text: String::new() });
            }
            (None, Some(block)) => {
                block.text += text;
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files.iter().filter(|file| file.path.starts_with("docs/") && file.path.ends_with(".md"))
}

/// Blocks that name a file in which they do not stand like that.
pub fn changed(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for document in documents(tree) {
        for block in blocks(document) {
            let [_, source] = block.words[..] else { continue };
            let at = format!("{}:{}", document.path, block.line);
            match tree.files.iter().find(|file| file.path == source) {
                None => found.push(format!("{at}: quotes `{source}`, which is not there")),
                Some(file) if !file.text.contains(&block.text) => {
                    found.push(format!("{at}: is no longer what stands in `{source}`: quote it anew"));
                }
                Some(_) => {}
            }
        }
    }
    found
}

/// Settings below `[modules]` that no module has, or that are none of its values.
pub fn unknown_settings(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for document in documents(tree) {
        for block in blocks(document).into_iter().filter(|block| block.words == ["toml"]) {
            let at = format!("{}:{}", document.path, block.line);
            match Document::parse(block.text.as_str()) {
                Err(error) => found.push(format!("{at}: is no TOML: {}", error.message())),
                Ok(toml) => found.extend(unknown(toml.get("modules")).map(|what| format!("{at}: {what}"))),
            }
        }
    }
    found
}

fn unknown(modules: Option<&Item>) -> Option<String> {
    let mut config = xeps::ModulesConfig::default();
    for (module, keys) in modules?.as_table_like()?.iter() {
        for (key, item) in keys.as_table_like()?.iter() {
            let Ok(value) = item.clone().into_value() else { return Some(format!("`{key}` is no value")) };
            if let Err(wrong) = config.set(module, key, &value) {
                return Some(format!("`modules.{module}.{key}` is not taken: {wrong:?}"));
            }
        }
    }
    None
}
