// Opens the page in Chromium and runs its client with each protocol. The page comes from another port than the API, so
// that the browser asks the broker for leave (CORS). CHROMIUM is the browser's path, WEIR_SERVER the broker's host and
// port, WEIR_TOKEN its token.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import esbuild from "esbuild";
import { chromium } from "playwright-core";

const { CHROMIUM, WEIR_SERVER, WEIR_TOKEN } = process.env;
// A name that the browser resolves to this machine, as any web site can have one.
const FOREIGN = "weir.example";

const bundle = await esbuild.build({ entryPoints: ["page.ts"], bundle: true, write: false, format: "iife" });
const script = bundle.outputFiles[0].text;
const pages = http.createServer((request, response) => {
  const isScript = request.url === "/page.js";
  response.setHeader("content-type", isScript ? "text/javascript" : "text/html; charset=utf-8");
  response.end(isScript ? script : "<!doctype html><title>Weir</title><script src=page.js></script>");
});
await once(pages.listen(0, "127.0.0.1"), "listening");
const { port } = pages.address();

// The browser's own services look up hosts, which may take long where there is no network.
const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"];
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: [...quiet, "--disable-gpu", `--host-resolver-rules=MAP ${FOREIGN} 127.0.0.1`],
});
try {
  const page = await browser.newPage();
  const messages = [];
  page.on("console", (message) => messages.push(message.text()));
  page.on("pageerror", (error) => messages.push(error.message));
  const run = (protocol) =>
    page.evaluate(([protocol, server, token]) => globalThis.run(protocol, server, token), [protocol, WEIR_SERVER, WEIR_TOKEN]);

  await page.goto(`http://localhost:${port}/`);
  for (const protocol of ["connect", "connect-binary", "grpc-web"]) {
    await run(protocol).catch((error) => {
      throw new Error(`${protocol}: ${error.message}\n${messages.join("\n")}`);
    });
  }
  // A page of another origin can't, although it has the token.
  await page.goto(`http://${FOREIGN}:${port}/`);
  messages.length = 0;
  await assert.rejects(run("grpc-web"));
  assert.ok(messages.some((message) => message.includes("blocked by CORS policy")), messages.join("\n"));
} finally {
  await browser.close();
  pages.close();
}
