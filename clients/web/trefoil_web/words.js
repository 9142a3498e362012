// The page's words in two languages. English is the key; what has no translation is shown in English.

const CHINESE = {
  "Chat": "对话", "Fill": "填空", "Entities": "实体", "Classify": "分类", "Train": "训练", "Engine": "引擎",
  "Model": "模型", "API key": "密钥", "Send": "发送", "Stop": "停止", "New conversation": "新对话", "Temperature": "温度",
  "Most tokens": "最多词元", "Say something": "说点什么", "Enter sends, Shift+Enter makes a new line, Escape stops": "回车发送，Shift+回车换行，Esc 停止",
  "Click a word, or use the arrow keys, to see what else the model considered": "点击词语，或用方向键，查看模型考虑过的其他选择",
  "Probability": "概率", "You": "你", "Assistant": "助手", "Run": "运行", "Text": "文本", "Candidates": "候选",
  "Use [MASK] for one word, or ___ for a span": "用 [MASK] 表示一个词，或用 ___ 表示一段", "Mask": "掩码", "Span": "片段",
  "No served model can do this. Start the server with one that can.": "没有可用的模型。请启动服务器时加载能完成该任务的模型。",
  "Your own labels, separated by commas": "自定义标签，用逗号分隔", "No entity was found": "没有找到实体",
  "Base model": "基础模型", "Data (JSON lines)": "数据（每行一个 JSON）", "Method": "方法", "Epochs": "轮数", "Learning rate": "学习率",
  "LoRA rank (0 trains all weights)": "LoRA 秩（0 为全量训练）", "Name of the result": "结果名称", "Start training": "开始训练", "Jobs": "任务",
  "Cancel": "取消", "Ask the result": "试用结果", "Loss": "损失", "Reward": "奖励", "Reward model": "奖励模型", "Step": "步", "No job yet": "还没有任务", "Messages": "消息",
  "Choose a file first": "请先选择文件", "This server does not train.": "此服务器不提供训练。", "Running": "运行中", "Waiting": "等待中",
  "Pages used": "已用页", "Prefix cache hits": "前缀缓存命中", "Tokens per second": "每秒词元", "Answers": "已答", "of": "/", "Answered by": "回答模型",
  "API reference": "接口文档", "Language": "English", "validating_files": "检查数据", "queued": "排队", "running": "运行中", "paused": "已暂停", "succeeded": "成功", "failed": "失败", "cancelled": "已取消",
  "This server asks for a key": "此服务器需要密钥", "Tokens": "词元", "Score": "分数",
};

export function startLanguage() {
  const kept = localStorage.getItem("language");
  return kept ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}

/** The function that says a text in a language. */
export const speaking = (language) => (text) => (language === "zh" ? CHINESE[text] ?? text : text);
