import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { developing } from "./dev.js";
import { repository } from "./process.js";

const vite = {
  dir: () => mkdtemp(join(tmpdir(), "dev-vite-")),
  files: {
    "index.html": `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>App</title></head>
<body><p id="message"></p><script type="module" src="/main.js"></script></body></html>`,
    "main.js": `
import { message } from "./message.js";
const show = (text) => (document.querySelector("#message").textContent = text);
show(message);
import.meta.hot.accept("./message.js", (module) => show(module.message));`,
    "message.js": `export const message = "first";\n`,
  },
  command: (port) => [process.execPath, join(repository, "web/e2e/node_modules/vite/bin/vite.js"), "--port", `${port}`, "--strictPort"],
  message: "message.js",
};
developing("Vite", vite);
developing("Vite below a path", {
  ...vite,
  files: { ...vite.files, "vite.config.js": `export default { base: "/shop/" };` },
  base: "/shop",
});

// Next.js is that of the example, which make examples installs.
const example = join(repository, "web/examples/next-export");
const next = {
  dir: () => mkdtemp(join(example, ".dev-")),
  files: {
    "package.json": `{ "private": true, "type": "module" }`,
    "next.config.js": "export default {};",
    "app/layout.jsx": `export default function Layout({ children }) {
  return <html lang="en"><body>{children}</body></html>;
}`,
    "app/page.jsx": `import { Message } from "./message.jsx";
export default function Page() {
  return <Message />;
}`,
    "app/message.jsx": `"use client";
import { useEffect } from "react";
export function Message() {
  useEffect(() => void (document.body.dataset.hydrated = "yes"));
  return <p>first</p>;
}`,
  },
  command: (port) => [process.execPath, join(example, "node_modules/next/dist/bin/next"), "dev", "--port", `${port}`],
  message: "app/message.jsx",
  subscriptions: {
    sent: /^\{"type":"turbopack-subscribe","path":"([^"]+)"/,
    done: /^\{"type":"built"/, // it has nothing left to compute, and a subscription begins with the current state
    hydrated: "body[data-hydrated]",
  },
  signal: "SIGTERM", // its server is a child, which SIGKILL would leave behind
};
developing("Next.js", next);
developing("Next.js below a path", {
  ...next,
  files: { ...next.files, "next.config.js": `export default { basePath: "/shop" };` },
  base: "/shop",
});

// So is webpack. Its development server checks Host and Origin, and allowedHosts names another host.
const webpack = join(repository, "web/examples/webpack");
const config = (client) => `module.exports = {
  mode: "development",
  entry: "./main.js",
  devServer: { static: "public", allowedHosts: ["app.example.com"], client: ${client} },
};`;
developing("webpack", {
  dir: () => mkdtemp(join(webpack, ".dev-")),
  files: {
    "package.json": `{ "private": true }`,
    "webpack.config.js": config("{}"),
    "public/index.html": `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>App</title></head>
<body><p id="message"></p><script defer src="/main.js"></script></body></html>`,
    "main.js": `
import { message } from "./message.js";
const show = () => (document.querySelector("#message").textContent = message);
show();
module.hot.accept("./message.js", show);`,
    "message.js": `export const message = "first";\n`,
  },
  command: (port) => [process.execPath, join(webpack, "node_modules/webpack/bin/webpack.js"), "serve", "--port", `${port}`],
  message: "message.js",
  throughDev: { "webpack.config.js": config(`{ webSocketURL: "auto://0.0.0.0:0/ws" }`) },
});
