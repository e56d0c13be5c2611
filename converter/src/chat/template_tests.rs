use super::*;
use serde_json::json;

/// In the manner of ChatML, with a system message where none is said, as several models have it.
const CHATML: &str = "{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

fn home(config: &serde_json::Value, file: Option<&str>) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::write(home.path().join(CONFIG), config.to_string()).expect("it is written");
    if let Some(text) = file {
        std::fs::write(home.path().join(FILE), text).expect("it is written");
    }
    home
}

fn said(text: &str) -> Vec<Message> {
    vec![Message { role: "user", content: text.to_owned() }]
}

fn rendered(config: &serde_json::Value, file: Option<&str>) -> Result<String, TemplateError> {
    Template::of(home(config, file).path())?.render(&said("Hello"))
}

#[test]
fn a_template_is_rendered_up_to_the_answer() {
    let text = rendered(&json!({}), Some(CHATML)).expect("it is rendered");
    assert_eq!(
        text,
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn it_is_a_file_or_a_key_and_the_file_counts() {
    let of_key = json!({"chat_template": "key {{ messages[0].content }}"});
    assert_eq!(rendered(&of_key, None).expect("it is rendered"), "key Hello");
    assert_eq!(rendered(&of_key, Some("file")).expect("it is rendered"), "file");
    let several = json!({"chat_template": [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"},
    ]});
    assert_eq!(rendered(&several, None).expect("it is rendered"), "plain");
}

#[test]
fn templates_have_what_transformers_gives_them() {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    let template = "{{ bos_token }}{% for m in messages %}{{ loop.index0 }}{{ m.content.strip().upper() }}\
{% if not m.content.startswith('X') %}{{ eos_token }}{% endif %}{% break %}{% endfor %}\
{% if tools is none %}!{% endif %}{{ messages | length }}{{ {'a': [1, none, 'x<y']} | tojson }}\
{% if strftime_now is defined %}date{% endif %}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}";
    assert_eq!(
        rendered(&config, Some(template)).expect("it is rendered"),
        "<s>0HELLO</s>!1{\"a\": [1, null, \"x<y\"]}date2"
    );
}

#[test]
fn what_does_not_work_is_told_in_a_line() {
    let told = |config: &serde_json::Value, file: Option<&str>| {
        let home = home(config, file);
        let error = Template::of(home.path()).and_then(|t| t.render(&said("Hello"))).expect_err("it fails");
        error.to_string().replace(&home.path().display().to_string(), "BUNDLE")
    };
    let all = [
        told(&json!({}), None),
        told(&json!({}), Some("{% for %}")),
        told(&json!({}), Some("{{ raise_exception('roles must alternate') }}")),
        told(&json!({"chat_template": "{{ messages.nothing.more }}"}), None),
    ];
    assert!(all.iter().all(|line| line.lines().count() == 1));
    insta::assert_snapshot!(all.join("\n"));
}
