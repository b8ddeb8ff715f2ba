/* The one function of bcryptprimitives.dll that Rust's standard library wants: random bytes. Wine 8
 * does not have the library, and no program built for Windows by Rust starts there without it. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID bytes, ULONG count);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T count) {
    const ULONG most = 1 << 16;
    while (count > 0) {
        ULONG some = count < most ? (ULONG)count : most;
        if (!SystemFunction036(bytes, some)) {
            return FALSE;
        }
        bytes += some;
        count -= some;
    }
    return TRUE;
}
