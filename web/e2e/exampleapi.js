// The API of the examples in web/examples. As a program it listens on port 3000.
import { once } from "node:events";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

import { WebSocketServer } from "ws";

const picture = '<svg xmlns="http://www.w3.org/2000/svg" width="48" height="48"><circle fill="#2a9d8f" cx="24" cy="24" r="20"/></svg>';

/** Starts the API. Every call must have an access token. @param {number} [port] */
export async function startAPI(port = 0) {
  const server = createServer((request, response) => {
    const json = (body, status = 200) => {
      response.writeHead(status, { "Content-Type": "application/json" });
      response.end(JSON.stringify(body));
    };
    if (!request.headers.authorization?.startsWith("Bearer ")) return json({ error: "invalid_token" }, 401);
    switch (`${request.method} ${request.url}`) {
      case "GET /api/orders":
        return json([{ id: 7, item: "Coat" }, { id: 8, item: "Hat" }]);
      case "GET /api/report.csv":
        response.writeHead(200, { "Content-Type": "text/csv", "Content-Disposition": 'attachment; filename="report.csv"' });
        return response.end("id,item\n7,Coat\n8,Hat\n");
      case "GET /api/picture.svg":
        response.writeHead(200, { "Content-Type": "image/svg+xml" });
        return response.end(picture);
      case "GET /api/ticks": {
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        const tick = setInterval(() => response.write("data: tick\n\n"), 200);
        return response.on("close", () => clearInterval(tick));
      }
      case "PUT /api/photo": {
        let bytes = 0;
        request.on("data", (chunk) => (bytes += chunk.length));
        return request.on("end", () => json({ bytes }));
      }
      case "POST /api/admin/close-year":
        return json({ text: "The year is closed." });
      default:
        return json({ error: "not found" }, 404);
    }
  });
  const sockets = new WebSocketServer({ server, path: "/api/chat" });
  sockets.on("connection", (socket) => socket.on("message", (data) => socket.send(`You said: ${data}`)));
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    async stop() {
      server.close();
      server.closeAllConnections();
    },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log((await startAPI(3000)).url);
