"""What a quickstart says and what it asks the model, in English and Chinese."""

PROMPTS: dict[str, tuple[str, str]] = {
    "en": (
        "Which planet is closest to the Sun?\nA. Venus\nB. Mercury\nC. Mars\nD. Earth",
        "Write a two-sentence story about an umbrella that is afraid of rain.",
    ),
    "zh": (
        "离太阳最近的行星是哪一颗？\nA. 金星\nB. 水星\nC. 火星\nD. 地球",
        "用两句话讲一个怕雨的雨伞的故事。",
    ),
}
"""Asked before and after: a question as in an exam, and a creative one; neither is in the data."""
RIGHT_OPTION = "B"
"""Of the first prompt, in both languages."""


TEXTS: dict[str, dict[str, str]] = {
    "en": {
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
    },
    "zh": {
        "welcome": "用几百条数据微调一个小模型，看看每项能力各提高多少。",
        "model": "模型",
        "data": "数据",
        "before": "训练前，留出数据上的损失",
        "training": "微调",
        "after": "训练后，留出数据上的损失",
        "replies": "回答与报告",
        "pulling": "还没有 {model}：下载一次即可",
        "model_ready": "{model} · {parameters} 个权重",
        "weak_language": "注意：{model} 几乎不懂中文，损失下降也不代表回答可读，这里只演示流程。换一个懂中文的模型：",
        "right": "答对了",
        "wrong": "答错了：正确答案是 {right}",
        "undecided": "没有选出答案：正确答案是 {right}",
        "worth": "以上是小模型对两个问题的贪心解码回答，问题都不在数据中。它先学会回答的形式，内容常有错误。",
        "no_leak": "训练数据中没有任何测试或验证数据（已检查 {held_out} 条）",
        "rows": "条",
        "loss_before": "{rows} 条 · 每词元 {loss:.3f} 纳特",
        "kept": "{all} 条中有 {rows} 条此前已测过",
        "plan": "训练全部权重 · {rows} 条 · {steps} 步，每步 {batch} 条 · 学习率 {rate:g}",
        "resuming": "发现未完成的 quickstart：接着训练",
        "trained_already": "此前已训练完成：{folder}",
        "asked": "问题",
        "was": "训练前",
        "now": "训练后",
        "audit": "检查你自己的数据",
        "train": "用你自己的数据训练",
        "resumed": "{stage}（剩余部分）",
        "stored": "已有用同样模型、数据和设置完成的 quickstart：{folder}",
        "again": "重新运行：deft quickstart{flags} --again",
        "interrupted": "已停止，已完成的部分都已保存：运行 deft quickstart{flags} 即可从中断处继续。",
    },
}
