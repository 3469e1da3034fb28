// Search in pages opened as files. A browser starts no worker for a file, so its script runs in a hidden frame. The theme would
// take such a stand-in from the network; this one keeps the site free of requests.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = this.onerror = null;
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inner = this.frame.contentWindow;
      inner.document.open();
      inner.document.write("<!doctype html><body></body>");
      inner.document.close();
      inner.postMessage = (data) => setTimeout(() => this.tell("message", new MessageEvent("message", { data })));
      inner.importScripts = (...urls) =>
        urls.reduce((before, each) => before.then(() => this.load(inner, each)), Promise.resolve());
      this.load(inner, url).then(
        () => {
          const waiting = this.waiting;
          this.waiting = null;
          waiting.forEach((data) => this.postMessage(data));
        },
        () => this.tell("error", new Event("error")),
      );
    }
    load(inner, url) {
      return new Promise((done, failed) => {
        const script = inner.document.createElement("script");
        script.src = new URL(url, location.href).href;
        script.onload = done;
        script.onerror = failed;
        inner.document.body.appendChild(script);
      });
    }
    tell(kind, event) {
      if (this["on" + kind]) this["on" + kind](event);
      this.dispatchEvent(event);
    }
    postMessage(data) {
      if (this.waiting) {
        this.waiting.push(data);
        return;
      }
      const inner = this.frame.contentWindow;
      setTimeout(() => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
