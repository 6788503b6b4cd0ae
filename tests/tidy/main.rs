//! Rules of the house that no compiler knows: arrows between crates, first lines, words that must not appear.

mod arrows;
mod bad_input;
mod files;
mod quotes;
mod source;
mod tree;

use tree::Tree;

/// Fails with every finding at once, one per line, so that a run of the test is enough to clean up.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn arrows_between_crates_run_down() {
    none(arrows::upward(&Tree::read()));
}

#[test]
fn crates_stay_clear_of_what_they_must_never_touch() {
    none(arrows::forbidden_words(&Tree::read()));
}

#[test]
fn every_dependency_says_why_it_is_here() {
    none(arrows::unexplained_dependencies(&Tree::read()));
}

#[test]
fn every_source_file_says_in_its_first_line_what_it_is() {
    none(source::first_lines(&Tree::read()));
}

#[test]
fn a_crate_root_is_a_map_without_definitions() {
    none(source::definitions_in_roots(&Tree::read()));
}

#[test]
fn nothing_is_left_for_later_and_no_test_is_ignored_or_sleeps() {
    none(source::forbidden_everywhere(&Tree::read()));
}

#[test]
fn every_module_of_an_extension_is_in_the_index() {
    none(source::extensions_missing_in_index(&Tree::read()));
}

#[test]
fn every_message_and_field_on_the_wire_is_commented() {
    none(files::uncommented_proto(&Tree::read()));
}

#[test]
fn the_top_level_holds_what_the_design_names_and_nothing_else() {
    none(files::strangers_at_top(&Tree::read()));
}

#[test]
fn no_text_names_a_path_of_somebodys_machine() {
    none(files::machine_paths(&Tree::read()));
}

#[test]
fn links_between_documents_lead_somewhere() {
    none(files::broken_links(&Tree::read()));
}

#[test]
fn code_in_documents_is_that_of_the_files_it_names() {
    none(quotes::changed(&Tree::read()));
}

#[test]
fn settings_of_modules_in_documents_are_taken() {
    none(quotes::unknown_settings(&Tree::read()));
}

#[test]
fn the_page_of_bad_input_is_the_one_that_the_tests_make() {
    let tree = Tree::read();
    let (page, wrong) = bad_input::page(&tree);
    none(wrong);
    if std::env::var_os("ROOKERY_REGENERATE").is_some() {
        return bad_input::regenerate(&tree, &page);
    }
    let stale = bad_input::committed(&tree) != page;
    let how =
        "docs/bad-input.md is stale: run ROOKERY_REGENERATE=1 cargo test -p tests --test tidy bad_input";
    none(stale.then(|| how.to_owned()).into_iter().collect());
}
