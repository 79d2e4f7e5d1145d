"""A web server: `/N` has N bytes, and `/long` ends when the file `DIR/stop` appears.

    web.py DIR PORT
"""
import http.server, os, sys, time

stop = os.path.join(sys.argv[1], "stop")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        if self.path != "/long":
            body = bytes(int(self.path[1:]))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.end_headers()
        while not os.path.exists(stop):
            self.wfile.write(bytes(1000))
            time.sleep(0.02)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
