"""What deft says in reports, tables, charts and at the end of a run, in Chinese; both languages have the same keys."""

from deft.losses import OVERALL

UNIT = "%"
"""The percent sign, as it stands after a number."""

ABILITIES_CLEAR = (
    "，各项能力的条数太少，无法单独给出区间",
    "，{abilities} 项能力中有 {clear} 项变化显著（区间不含 0）",
    "，{abilities} 项能力的变化均显著（区间不含 0）",
)
"""In how many abilities the change is clear of zero: that none can be told, of some, and of all."""

ABILITY_NAMES: dict[str, str] = {
    OVERALL: "全部",
    "biology": "生物",
    "chinese": "中文",
    "code": "代码",
    "creative_writing": "创意写作",
    "ethics": "伦理",
    "history": "历史",
    "math": "数学",
    "reasoning": "推理",
    "role_play": "角色扮演",
    "understanding": "理解",
    "other": "其他",
}
"""The names under which abilities are shown; others are shown as they are."""

PAGE: dict[str, str] = {
    "html_lang": "zh-CN",
    "title": "用 {rows} 条数据训练之后的变化",
    "sentence": (
        "在模型从未训练过的 {held_out} 条留出数据上，损失从每词元 <b>{before:.3f}</b> 纳特{moved}到 "
        "<b>{after:.3f}</b>：<b>{percent}</b>（95% 区间 {low} 至 {high}）"
        "{of_abilities}。"
    ),
    "fell": "降",
    "rose": "升",
    "picture": "各项能力训练前后的损失",
    "axis": "留出数据上的损失，纳特/词元（越靠左越好）",
    "table": "具体数字",
    "ability": "能力",
    "rows": "条数",
    "before": "训练前",
    "after": "训练后",
    "change": "变化",
    "interval": "95% 区间",
    "verdict": "变化显著？",
    "better": "是，变好",
    "worse": "是，变差",
    "unclear": "否",
    "unknown": "条数太少",
    "replies": "训练前后的回答",
    "asked": "问题",
    "curve": "逐步的训练损失",
    "step": "优化器步数",
    "ran": "运行记录",
    "model": "模型",
    "settings": "设置",
    "versions": "版本",
    "fingerprints": "输入的指纹",
    "times": "用时",
    "reading": "怎样读这份报告",
    "reading_loss": (
        "<b>每词元的纳特。</b>损失表示模型对正确回答的每个词元有多“意外”：它给该词元的概率取自然对数的负值，再求平均。"
        "0 表示完全确定；{before:.2f} 纳特相当于每个词元猜中的机会为 {chance_before:.1f} 分之一，"
        "{after:.2f} 纳特则为 {chance_after:.1f} 分之一。"
    ),
    "reading_interval": (
        "<b>区间。</b>留出数据只是一个样本。把这些数据有放回地重抽 2,000 次（每条的前后成对保留），"
        "变化有 95% 落在此区间内；条数少时区间已相应放宽。"
        "“变化显著”即区间不含 0，表示仅凭抽到哪些数据解释不了这个变化。"
        "区间只针对这一次训练：换一个随机种子，模型会略有不同。"
    ),
    "reading_accuracy": (
        "<b>不是正确率。</b>留出损失降低，说明这类内容和形式的回答变得更可能，并不等于答对的题更多："
        "最初的下降有很大一部分来自模型学会了回答的形式。在宣称具备某项能力之前，请用有标准答案的题目测正确率。"
    ),
    "next": "接下来",
}
"""What the page of a run says; markup is its own."""

TABLE: dict[str, str] = {
    "interval": "95% 区间（%）",
    "verdict": "变化显著",
    "better": "✓",
    "worse": "✓ 变差",
    "unclear": "否",
    "unknown": "–",
}
"""What the terminal's table, which must fit 80 columns, says shorter than the page."""

ENDING: dict[str, str] = {
    "report": "报告  ",
    "picture": "图    ",
    "next": "接下来",
    "activate": "每个终端先执行一次",
    "chat": "在终端里与它对话",
    "page": "在浏览器里与它对话",
    "audit": "检查你自己的数据",
    "train": "用你自己的数据训练",
    "merge": "把适配器合并进基座模型",
    "export": "导出为可发布的文件夹",
    "runs": "与其他训练比较",
    "summary": (
        "{held_out} 条留出数据上的损失：每词元 {before:.3f} → {after:.3f} 纳特，{percent}（95% 区间 {low} 至 {high}）"
    ),
    "training_loss": (
        "训练损失：第一步 {first:.3f}，最后一步 {last:.3f}（每词元纳特）。没有留出数据，因此看不出学到了多少。"
    ),
    "cost": "{rows} 条训练数据 · 共用时 {time}",
    "cost_resumed": "{rows} 条训练数据 · 续跑用时 {time}",
    "chosen": "最好的一轮就是用这些留出数据选出来的，因此提升会略显偏大。",
}
"""What the terminal says when a training is over."""

CHART: dict[str, str] = {
    "interval": "变化的 95% 区间（从训练前的点量起）",
    "training": "训练数据（每一步）",
    "validation": "验证数据（全部）",
    "loss": "损失，纳特/词元",
}
"""What charts say, beside the words that the page has for the same things."""

QUICKSTART: dict[str, str] = {
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
}
"""What a quickstart says while it runs."""
