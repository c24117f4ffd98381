"""What deft says in reports, tables, charts and at the end of a run, in English; both languages have the same keys."""

from deft.losses import OVERALL

UNIT = "\u00a0%"
"""The percent sign, as it stands after a number."""

ABILITIES_CLEAR = (
    ", with too few rows in each ability for intervals of their own",
    ", clear of zero in {clear} of {abilities} abilities",
    ", clear of zero in {clear} of {abilities} abilities",
)
"""In how many abilities the change is clear of zero: that none can be told, of some, and of all."""

ABILITY_NAMES: dict[str, str] = {OVERALL: "all rows"}
"""The names under which abilities are shown; others are shown as they are."""

PAGE: dict[str, str] = {
    "html_lang": "en",
    "title": "What training on {rows} rows changed",
    "sentence": (
        "On {held_out} rows the model never trained on, the loss {moved} from <b>{before:.3f}</b> to "
        "<b>{after:.3f}</b> nats per token: <b>{percent}</b> (95&nbsp;% interval {low} to {high})"
        "{of_abilities}."
    ),
    "fell": "fell",
    "rose": "rose",
    "picture": "Loss per ability, before and after",
    "axis": "loss on held-out rows, nats per token (further left is better)",
    "table": "The figures",
    "ability": "ability",
    "rows": "rows",
    "before": "before",
    "after": "after",
    "change": "change",
    "interval": "95 % interval",
    "verdict": "clear of zero?",
    "better": "yes, better",
    "worse": "yes, worse",
    "unclear": "no",
    "unknown": "too few rows",
    "replies": "Replies before and after",
    "asked": "asked",
    "curve": "The training, step by step",
    "step": "optimizer step",
    "ran": "What ran",
    "model": "model",
    "settings": "settings",
    "versions": "versions",
    "fingerprints": "fingerprints of the inputs",
    "times": "time",
    "reading": "How to read this",
    "reading_loss": (
        "<b>Nats per token.</b> The loss is how surprised the model is by each token of the right reply: the "
        "negative natural logarithm of the probability it gave that token, on average. 0 is certainty; "
        "{before:.2f} nats means one chance in {chance_before:.1f} per token, {after:.2f} nats one in "
        "{chance_after:.1f}."
    ),
    "reading_interval": (
        "<b>The interval.</b> The held-out rows are a sample. Drawn again 2,000 times with replacement (each row’s "
        "before and after together), the change falls into the interval 95 % of the time, widened for small "
        "numbers of rows. Clear of zero means that the draw of the rows alone does not explain the change. It "
        "covers one training run: another seed would give a slightly different model."
    ),
    "reading_accuracy": (
        "<b>Not accuracy.</b> A lower held-out loss means that replies of this kind and form have become likelier. "
        "It does not count right answers: much of a first drop is the model picking up the form of the replies. "
        "Measure accuracy with questions that have answers before you claim an ability."
    ),
    "next": "What to do next",
}
"""What the page of a run says; markup is its own."""

TABLE: dict[str, str] = {
    "interval": "95 % interval (%)",
    "verdict": "clear\nof zero",
    "better": "✓",
    "worse": "✓ worse",
    "unclear": "no",
    "unknown": "–",
}
"""What the terminal's table, which must fit 80 columns, says shorter than the page."""

ENDING: dict[str, str] = {
    "report": "report   ",
    "picture": "picture  ",
    "next": "Next",
    "activate": "once in each terminal",
    "chat": "talk to it in the terminal",
    "page": "talk to it in the browser",
    "audit": "look at your own data",
    "train": "train on your own data",
    "merge": "merge the adapter into its base model",
    "export": "write it as a folder to publish",
    "runs": "compare it with other runs",
    "summary": (
        "Loss on {held_out} held-out rows: {before:.3f} → {after:.3f} nats per token, {percent} "
        "(95 % interval {low} to {high})"
    ),
    "training_loss": (
        "Training loss: {first:.3f} at the first step, {last:.3f} at the last (nats per token). Nothing was held "
        "out, so this does not say how much was learned."
    ),
    "cost": "{rows} training rows · {time} in all",
    "cost_resumed": "{rows} training rows · {time} since it was resumed",
    "chosen": "The best epoch was chosen by these same rows, which makes the gain look a little larger than it is.",
}
"""What the terminal says when a training is over."""

CHART: dict[str, str] = {
    "interval": "95\u00a0% interval of the change, laid from the point before",
    "training": "training, each step",
    "validation": "validation, all",
    "loss": "loss, nats per token",
}
"""What charts say, beside the words that the page has for the same things."""

QUICKSTART: dict[str, str] = {
    "welcome": "Fine-tune a small model on a few hundred rows, and see what each ability gains.",
    "model": "Model",
    "data": "Data",
    "before": "Loss on held-out rows, before",
    "training": "Fine-tuning",
    "after": "Loss on held-out rows, after",
    "replies": "Replies and report",
    "pulling": "{model} is not here yet: fetching it once",
    "model_ready": "{model} · {parameters} weights",
    "weak_language": (
        "Note: {model} hardly knows the language of these data. A lower loss does not make its replies readable: "
        "this only shows the path. One that knows some of it:"
    ),
    "right": "right",
    "wrong": "wrong: {right} is right",
    "undecided": "no answer: {right} is right",
    "worth": (
        "Greedy replies of a small model to two prompts that are in none of the data. It learns the form of a "
        "reply first; what it says is often wrong."
    ),
    "no_leak": "no test or validation row occurs in the training rows ({held_out} checked)",
    "rows": "rows",
    "loss_before": "{rows} rows · {loss:.3f} nats per token",
    "kept": "{rows} of {all} rows were measured earlier",
    "plan": "every weight · {rows} rows · {steps} steps of {batch} rows · learning rate {rate:g}",
    "resuming": "an unfinished quickstart is there: going on with it",
    "trained_already": "trained in an earlier start: {folder}",
    "asked": "asked",
    "was": "before",
    "now": "after",
    "audit": "look at your own data",
    "train": "train on your own data",
    "resumed": "{stage} (what was left)",
    "stored": "A finished quickstart with this model, data and settings is there: {folder}",
    "again": "to run it again: deft quickstart{flags} --again",
    "interrupted": "Stopped. What is done is kept: deft quickstart{flags} goes on from here.",
}
"""What a quickstart says while it runs."""
